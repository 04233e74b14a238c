"""The server."""

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits.task import accuracy, load_data, new_model
from secfl.federation.flower_dropin import SecureStrategy

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy on data of the server's own."""
    model = {name: array.numpy() for name, array in arrays.items()}
    return MetricRecord({"round": server_round, "accuracy": accuracy(model, *load_data(99))})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train over all sites."""
    arrays = ArrayRecord({name: Array(values) for name, values in new_model().items()})
    settings = {"secure_agg": {"coordinate_bound": 1.0}}
    strategy = SecureStrategy(FedAvg(fraction_evaluate=0.0), context, settings=settings)
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=int(context.run_config.get("num-server-rounds", 3)),
        train_config=ConfigRecord({"lr": 0.5}),
        evaluate_fn=evaluate,
    )
    print(f"accuracy {result.evaluate_metrics_serverapp}")
