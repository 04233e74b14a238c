"""Local training, as one writes it for NVFlare's FedAvg."""

import nvflare.client as flare
import torch
from model import SmallNetwork, points_of
from torch.nn.functional import cross_entropy


def main() -> None:
    """Train whenever a model comes."""
    flare.init()
    number = int(flare.get_site_name().split("-")[-1])
    points, classes = points_of(number, 200)
    model = SmallNetwork()
    while flare.is_running():
        received = flare.receive()
        model.load_state_dict(received.params)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for start in range(0, len(points), 20):
            optimizer.zero_grad()
            loss = cross_entropy(model(points[start : start + 20]), classes[start : start + 20])
            loss.backward()
            optimizer.step()
        print(f"round {received.current_round}: loss {loss.item():.3f}")
        flare.send(flare.FLModel(params=model.state_dict(), metrics={"loss": loss.item()}))


if __name__ == "__main__":
    main()
