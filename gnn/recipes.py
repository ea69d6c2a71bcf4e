"""What the papers' recipes are on each kind of data: defaults for the flags that nobody gives."""

CITATIONS = {
    "gcn": dict(epochs=200, lr=0.01, hidden=[16], dropout=0.5, window=10),
    "sage": dict(epochs=50, lr=0.01, hidden=[128, 128], dropout=0.5, patience=20),
    "gat": dict(epochs=2000, lr=0.005, hidden=[8], dropout=0.6, patience=100),
}
KARATE = {  # for gcn those of train.py's QUICK
    "sage": dict(epochs=60, hidden=[16, 16], dropout=0.0),
    "gat": dict(epochs=100, dropout=0.2),
}
GRAPHS = dict(epochs=100, batch_size=32, lr=0.005, hidden=[64, 64], dropout=0.2, weight_decay=0.0)
PPI = {
    "gcn": dict(hidden=[256, 256], batch_size=2),
    "sage": dict(hidden=[256, 256], batch_size=512),
    "gat": dict(hidden=[256, 256], batch_size=2, num_heads=4, out_heads=6, residual=True),
}
TISSUES = dict(epochs=200, lr=0.005, dropout=0.0, weight_decay=0.0, patience=100, features="raw")
SHARED = dict(activation="relu", window=None, patience=None)


def recipe(model: str, kind: str) -> dict:
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
