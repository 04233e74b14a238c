"""A site."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits.task import fit, load_data, new_model
from secfl.federation.flower_dropin import protect

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the global model on the site's data."""
    model = {name: array.numpy() for name, array in msg.content["arrays"].items()}
    images, labels = load_data(context.node_config["partition-id"])
    model = fit(model, images, labels, lr=msg.content["config"]["lr"])
    arrays = ArrayRecord({name: Array(values) for name, values in model.items()})
    metrics = MetricRecord({"num-examples": len(images)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


def initial(_context: Context) -> ArrayRecord:
    """Names and shapes of the model."""
    return ArrayRecord({name: Array(values) for name, values in new_model().items()})


app = protect(app, initial=initial, train_config={"lr": 0.5})
