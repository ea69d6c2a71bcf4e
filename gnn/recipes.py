"""The papers' recipes for each kind of data, and which flags mean something for which model."""

CITATIONS = {
    "gcn": dict(epochs=200, lr=0.01, hidden=[16], dropout=0.5, window=10),
    "sage": dict(epochs=50, lr=0.01, hidden=[128, 128], dropout=0.5, patience=20),
    "gat": dict(epochs=2000, lr=0.005, hidden=[8], dropout=0.6, patience=100),
}
KARATE = {  # for gcn those of train.py's QUICK
    "sage": dict(epochs=60, hidden=[16, 16], dropout=0.0),
    "gat": dict(epochs=100, dropout=0.2),
}
GRAPHS = dict(epochs=100, batch_size=32, lr=0.005, hidden=[64, 64], dropout=0.2, weight_decay=0.0,
              patience=50, readout="sum")  # fmt: skip
PPI = {
    "gcn": dict(hidden=[256, 256], batch_size=2),
    "sage": dict(hidden=[256, 256], batch_size=512),
    "gat": dict(hidden=[256, 256], batch_size=2, num_heads=4, out_heads=6, residual=True),
}
TISSUES = dict(epochs=200, lr=0.005, dropout=0.0, weight_decay=0.0, patience=100, features="raw")
SHARED = dict(activation="relu", window=None, patience=None)


def defaults_for(model: str, kind: str) -> dict:
    """Defaults for `kind` of data ("cora", "mutag", "graph"), on top of which come the flags."""
    if kind in ("mutag", "proteins"):
        return SHARED | GRAPHS | ({"num_heads": 4, "hidden": [16, 16]} if model == "gat" else {})
    if kind == "ppi":
        return SHARED | TISSUES | PPI[model]
    settings = SHARED | CITATIONS[model]
    if kind == "karate":
        return settings | KARATE.get(model, {}) | dict(window=None, patience=None)
    if (model, kind) == ("gat", "pubmed"):  # Sec. 3.3
        settings |= dict(out_heads=8, lr=0.01, weight_decay=1e-3)
    return settings


MANY = ("mutag", "proteins", "ppi")  # many graphs, not one
SETTINGS = {  # flags that are arguments of a network
    "gcn": ["rule", "residual", "activation"],
    "sage": ["aggregator"],
    "gat": ["residual", "num_heads", "out_heads", "attention"],
}


def takes_all(model: str, kind: str) -> bool:
    """Whether a step takes the whole graph at once."""
    return model != "sage" and kind not in MANY


def without_meaning(model: str, kind: str, loss: str) -> dict[str, str]:
    """The flags that this model, data and loss have no use for, and why."""
    all_settings = {flag for flags in SETTINGS.values() for flag in flags}
    why = dict.fromkeys(all_settings - set(SETTINGS[model]), f"{model} has no such part")
    if takes_all(model, kind):
        reason = "each step takes the whole graph (sage draws mini-batches)"
        why |= dict.fromkeys(["batch_size", "accumulate"], reason)
    if kind in MANY:
        why["loss"] = "it is for one graph, and there are many"
    if kind in ("mutag", "proteins"):
        why["fanouts"] = "graphs as small as these are taken whole"
    else:
        why["readout"] = "nodes have labels, not graphs"
    if kind == "ppi" and model != "sage":
        why["limit"] = "each step takes whole graphs (sage draws nodes)"
    if loss == "unsupervised":
        why["dropout"] = "the paper's loss of walks has none"
        why["window"] = "without labels there is no validation loss; take --patience"
    if model != "sage":
        why |= dict.fromkeys(["fanouts", "loss"], "they are for sage")
    return why


def fit(
    model: str, num_layers: int | None, hidden: list[int], fanouts: list[int]
) -> tuple[list[int], list[int]]:
    """Widths and fan-outs: of `num_layers` layers, if that is given, else of those of `hidden`."""
    # The last layer of gcn and gat has the classes' width, and isn't in `hidden`.
    layers = num_layers - (model != "sage") if num_layers else len(hidden)
    hidden = hidden if len(hidden) == layers else hidden[:1] * layers
    return hidden, fanouts if len(fanouts) == layers else (fanouts + fanouts[-1:] * layers)[:layers]
