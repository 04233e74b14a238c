"""NVFlare's own FedAvg: the server sees every site's model."""

import sys

sys.path.insert(0, "code")
from model import SmallNetwork
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

recipe = FedAvgRecipe(
    name="hello", model=SmallNetwork(), min_clients=4, num_rounds=3, train_script="code/client.py"
)
run = recipe.execute(SimEnv(num_clients=5, workspace_root="workspace"))
print(run.get_result())
