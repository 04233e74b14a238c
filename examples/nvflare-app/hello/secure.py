"""The same training with secure aggregation: the server sees the sum of at least four models."""

from pathlib import Path

from nvflare.recipe import SimEnv

from secfl.federation.nvflare import SecflRecipe

recipe = SecflRecipe("hello", min_clients=4, home=Path())
run = recipe.execute(SimEnv(num_clients=5, workspace_root="workspace"))
print(run.get_result())
