"""Graph data: the readers of each format, from files made here, parts, batches, and bad input."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import weights
from processes import device_args

from common.cli import Flags
from common.device import Device
from gnn import data as graphs
from gnn import sample, tables, train
from gnn.data import folds, load_graphs
from gnn.sets import NUM_DEGREES, column_scales, row_normalised
from gnn.tables import read_tables


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test waits for a network."""
    from torch_geometric import datasets

    def download(self):
        raise OSError("no network here")

    for kind in (datasets.Planetoid, datasets.TUDataset, datasets.PPI):
        monkeypatch.setattr(kind, "download", download)


def tree(folder):
    """All that lies below a folder."""
    return {p: p.read_bytes() if p.is_file() else b"" for p in Path(folder).rglob("*")}


def flags(**changes):
    known = dict(
        data="karate", data_dir="data", val=500, limit=None, seed=0, features="rows", fold=0
    )
    known |= dict(attributes=False, unseen=False, window=None, patience=None, evaluate=None)
    names = [name for name in changes if name != "stored"]
    return Flags(**{**known, "stored": {}, **changes, "typed": names, "chosen": names})


def load(**changes):
    return load_graphs(flags(**changes), Device(device_args()))


def test_karate():
    train, val, test = load()
    assert (len(train), val, len(test)) == (4, None, 30)
    assert sorted(train.everything().labels.tolist()) == [0, 1, 2, 3]
    assert train.graph.edge_index.shape == (2, 156)
    assert not set(train.indices.tolist()) & set(test.indices.tolist())


# ---------------------------------------------------------------------- Planetoid


def write_planetoid(name="cora", folder="data/Planetoid/Cora/raw", num=700):
    """The raw format: pickled sparse matrices, a dictionary of neighbours, the test nodes' list."""
    import scipy.sparse

    raw, rng = Path(folder), np.random.default_rng(0)
    raw.mkdir(parents=True)
    x = (rng.random((num, 12)) < 0.3).astype(np.float32)
    classes = np.arange(num) % 3
    y = np.eye(3, dtype=np.int32)[classes]
    test = np.arange(num - 50, num)
    shuffled = rng.permutation(test)
    if name == "citeseer":
        shuffled = shuffled[shuffled != num - 20]  # a node that the test set lacks
    parts = {"x": x[:6], "allx": x[: num - 50], "tx": x[np.sort(shuffled)]}
    parts = {key: scipy.sparse.csr_matrix(value) for key, value in parts.items()}
    parts |= {"y": y[:6], "ally": y[: num - 50], "ty": y[np.sort(shuffled)]}
    # row k of tx is the node that stands in line k of test.index
    order = np.argsort(shuffled)
    parts["tx"] = scipy.sparse.csr_matrix(x[shuffled])
    parts["ty"] = y[shuffled]
    assert len(order) == len(shuffled)
    parts["graph"] = {i: [(i + 1) % num, (i - 1) % num] for i in range(num)}
    for key, value in parts.items():
        raw.joinpath(f"ind.{name}.{key}").write_bytes(pickle.dumps(value))
    raw.joinpath(f"ind.{name}.test.index").write_text("".join(f"{i}\n" for i in shuffled))
    return x, classes, shuffled


@pytest.mark.parametrize(
    ("name", "folder"), [("cora", "Cora"), ("citeseer", "CiteSeer"), ("pubmed", "PubMed")]
)
def test_planetoid(name, folder):
    before = write_planetoid(name, f"data/Planetoid/{folder}/raw")
    x, classes, shuffled = before
    files = tree("data/Planetoid")
    train, val, test = load(data=name, features="raw")
    assert (len(train), len(val), len(test)) == (6, 500, len(shuffled))
    assert train.indices.tolist() == list(range(6))
    assert val.indices.tolist() == list(range(6, 506))
    assert sorted(test.indices.tolist()) == sorted(shuffled.tolist())
    there = sorted({*range(650), *shuffled.tolist()})
    torch.testing.assert_close(train.graph.features[there], torch.from_numpy(x[there]))
    assert train.graph.labels[there].tolist() == classes[there].tolist()
    assert train.graph.edge_index.shape == (2, 1400)
    assert tree("data/Planetoid") == files  # nothing is written beside the input


def test_planetoids_parts(refused):
    write_planetoid()
    assert load(data="cora", val=0)[1] is None
    train, val, _ = load(data="cora")
    torch.testing.assert_close(train.graph.features, row_normalised(train.graph.features))
    assert train.graph.features is val.graph.features  # one copy
    line = refused(lambda: load(data="cora", val=100))
    assert "has a validation set of its own, of 500" in line
    assert len(load(data="cora", limit=4)[0]) == 4
    train, val, _ = load(data="cora", unseen=True)
    assert len(train.graph.features) == 700 - 550
    assert len(val.graph.features) == 700
    assert train.everything().labels.tolist() == [0, 1, 2, 0, 1, 2]
    edges = train.graph.edge_index
    assert int(edges.max()) < 150
    assert edges.shape[1] == 2 * 5 + 2 * 143  # nodes 0 to 5 and 506 to 649: two paths


def test_missing_and_damaged_planetoid(refused):
    line = refused(lambda: load(data="cora"))
    assert "ind.cora.x" in line
    assert "--data karate" in line
    assert not Path("data").exists()
    write_planetoid()
    Path("data/Planetoid/Cora/raw/ind.cora.allx").write_bytes(b"damaged")
    assert "Planetoid/Cora/raw are damaged" in refused(lambda: load(data="cora"))
    Path("data/Planetoid/Cora/raw/ind.cora.graph").unlink()
    assert "ind.cora.graph" in refused(lambda: load(data="cora"))


# ---------------------------------------------------------------------- many graphs


def write_molecules(name="MUTAG", num=40):
    """Rings of different lengths; the class is whether the ring has a node of the second kind."""
    raw = Path(f"data/TUDataset/{name}/raw")
    raw.mkdir(parents=True)
    edges, graph_of, kinds, labels, first = [], [], [], [], 1
    for g in range(num):
        size = 3 + g % 4
        for k in range(size):
            edges += [(first + k, first + (k + 1) % size), (first + (k + 1) % size, first + k)]
        graph_of += [g + 1] * size
        kinds += [g % 2] + [2 * (k % 2) for k in range(size - 1)]
        labels.append(1 if g % 2 else -1)
        first += size
    texts = {
        "A": [f"{i}, {j}" for i, j in edges],
        "graph_indicator": graph_of,
        "graph_labels": labels,
        "node_labels": kinds,
    }
    for key, lines in texts.items():
        raw.joinpath(f"{name}_{key}.txt").write_text("".join(f"{line}\n" for line in lines))
    return raw


def test_molecules():
    write_molecules()
    train, val, test = load(data="mutag")
    assert (len(train), len(val), len(test)) == (33, 3, 4)
    graph = train.graph
    assert graph.features.shape == (180, 3)
    assert graph.labels.tolist() == [0, 1] * 20
    batch = train.some(torch.tensor([1, 0]))
    features, edge_index, graph_of, num_graphs = batch.inputs
    assert num_graphs == 2
    assert graph_of.tolist() == [0] * 4 + [1] * 3
    assert batch.labels.tolist() == [1, 0]
    pairs = set(map(tuple, edge_index.t().tolist()))
    assert (0, 1) in pairs and (0, 3) in pairs and (4, 6) in pairs
    assert len(pairs) == 8 + 6
    assert not any((i < 4) != (j < 4) for i, j in pairs)
    torch.testing.assert_close(features[:4], graph.features[3:7])
    counts = [len(batch.labels) for batch in train.batches(8)]
    assert counts == [8] * 4
    assert sum(len(batch.labels) for batch in test.batches(3)) == 4


def test_folds_are_stratified_and_cover_all(refused):
    write_molecules("PROTEINS")
    seen = []
    for k in range(10):
        train, _, test = load(data="proteins", fold=k, val=0)
        seen += test.indices.tolist()
        assert not set(train.indices.tolist()) & set(test.indices.tolist())
        assert test.graph.labels[test.indices].tolist().count(1) == 2
    assert sorted(seen) == list(range(40))
    assert "--fold 10" in refused(lambda: load(data="proteins", fold=10))
    labels = torch.tensor([0] * 125 + [1] * 63)
    sizes = [(labels[folds(labels) == k] == 1).sum().item() for k in range(10)]
    assert max(sizes) - min(sizes) <= 1


def test_missing_and_damaged_molecules(refused):
    assert "MUTAG_A.txt" in refused(lambda: load(data="mutag"))
    raw = write_molecules()
    (raw / "MUTAG_node_labels.txt").write_text("0\n1\n")
    assert "TUDataset/MUTAG/raw are damaged" in refused(lambda: load(data="mutag"))


def test_a_tu_set_by_name_and_its_attributes(refused, capsys):
    raw = write_molecules("RINGS")
    values = torch.arange(360.0).view(180, 2)
    lines = "".join(f"{a}, {b}\n" for a, b in values.tolist())
    raw.joinpath("RINGS_node_attributes.txt").write_text(lines)
    before = tree("data/TUDataset")
    for taken in (True, False):
        capsys.readouterr()
        args = train.parse_args(["--data", "tu:RINGS", *["--no-attributes"] * (not taken)])
        assert args.attributes == taken
        set_, _, _ = load_graphs(args, Device(device_args(quiet=False)))
        said = "2 continuous attributes of each node " + ("taken" if taken else "left out")
        assert said in capsys.readouterr().out
        x = set_.graph.features
        assert x.shape == (180, 5 if taken else 3)
        assert set(x[:, -3:].unique().tolist()) == {0.0, 1.0}
    assert tree("data/TUDataset") == before
    x = load(data="tu:RINGS", attributes=True, features="standard")[0].graph
    seen = load(data="tu:RINGS", attributes=True, features="raw")[0]
    rows = values[torch.isin(seen.graph.graph_of, seen.indices)]
    wanted = (values - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(x.features[:, :2], wanted)
    assert "the nodes of MUTAG have none" in refused(
        lambda: (write_molecules(), load(data="mutag", attributes=True))
    )


def test_a_tu_set_without_features_labels_or_files(refused, capsys):
    raw = write_molecules("RINGS")
    raw.joinpath("RINGS_node_labels.txt").unlink()
    x = load(data="tu:RINGS")[0].graph.features
    assert x.shape == (180, NUM_DEGREES)
    assert x[:, 2].sum() == 180  # a node of a ring has two neighbours
    raw.joinpath("RINGS_graph_labels.txt").unlink()
    assert "RINGS have no classes" in refused(lambda: load(data="tu:RINGS"))
    line = refused(lambda: load(data="tu:NONE"))
    assert "NONE_A.txt is not in data/TUDataset/NONE/raw" in line
    assert not Path("data/TUDataset/NONE").exists()
    assert "is not the name" in refused(lambda: load(data="tu:../RINGS"))


def test_damaged_files_leave_nothing_in_the_cache(refused):
    write_planetoid()
    load(data="cora")
    assert len(list(Path("data/cache").iterdir())) == 1
    load(data="cora")  # out of the cache
    assert len(list(Path("data/cache").iterdir())) == 1
    Path("data/Planetoid/Cora/raw/ind.cora.graph").write_bytes(b"damaged")
    assert "are damaged" in refused(lambda: load(data="cora"))  # not what the old files were
    assert len(list(Path("data/cache").iterdir())) == 1


def test_two_processes_fill_the_cache_at_once(monkeypatch):
    """The second finds the name taken when it is done, and goes on with what it has read."""
    write_planetoid()
    real, met = graphs.os.rename, []

    def rename(made, kept):
        if not met:
            met.append(kept)
            load(data="cora")  # by another process, meanwhile
        real(made, kept)

    monkeypatch.setattr(graphs.os, "rename", rename)
    first = load(data="cora")[0]
    assert [path.name for path in Path("data/cache").iterdir()] == [met[0].name]
    monkeypatch.setattr(graphs.os, "rename", real)
    assert torch.equal(load(data="cora")[0].graph.features, first.graph.features)


def test_a_cache_that_cannot_be_written(refused):
    write_planetoid(folder="elsewhere/Planetoid/Cora/raw")
    Path("data").write_text("")
    assert "data/cache" in refused(lambda: load(data="cora", data_dir="elsewhere"))


def write_ppi(directed=False, first_size=5):
    raw = Path("data/PPI/raw")
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, first, num in (("train", 1, 3), ("valid", 4, 2), ("test", 6, 2)):
        sizes = [first_size, *[5] * (num - 1)]
        numbers = np.repeat(np.arange(first, first + num), sizes)
        links, total = [], sum(sizes)
        for g, n in enumerate(sizes):
            b = sum(sizes[:g])
            links += [{"source": b + k, "target": b + (k + 1) % n} for k in range(n)]
            links.append({"source": b, "target": b})
        nodes = [{"id": k} for k in range(total)]
        content = dict(directed=directed, multigraph=False, graph={}, nodes=nodes, links=links)
        (raw / f"{name}_graph.json").write_text(json.dumps(content))
        np.save(raw / f"{name}_feats.npy", rng.random((total, 4)))
        np.save(raw / f"{name}_labels.npy", rng.integers(0, 2, (total, 6)))
        np.save(raw / f"{name}_graph_id.npy", numbers)


@pytest.mark.parametrize("directed", [False, True])
def test_ppi_as_pyg_reads_it(directed):
    from torch_geometric.datasets import PPI

    write_ppi(directed)
    parts = dict(zip(("train", "val", "test"), load(data="ppi", features="raw"), strict=True))
    assert not Path("data/PPI/processed").exists()
    for name, part in parts.items():
        theirs = PPI("data/PPI", split=name)
        assert len(part.starts) - 1 == len(theirs)
        for k, graph in enumerate(theirs):
            batch = part.some(torch.tensor([k]))
            features, edge_index = batch.inputs
            torch.testing.assert_close(features, graph.x)
            torch.testing.assert_close(batch.labels, graph.y)
            pairs = [set(map(tuple, e.t().tolist())) for e in (edge_index, graph.edge_index)]
            assert pairs[0] == pairs[1]


def test_training_on_ppi(refused):
    assert "train_feats.npy" in refused(lambda: load(data="ppi"))
    write_ppi()
    for model in ("gcn", "sage", "gat"):
        argv = ["--model", model, "--data", "ppi", "--epochs", "2", "--hidden", "8", "8"]
        metrics = train.main([*argv, "--quiet", "--run-dir", model])
        again = train.main(["--evaluate", f"{model}/best.pt", "--quiet"])
        assert again["test_f1"] == pytest.approx(metrics["test_f1"])
        assert metrics["test_f1"] > 0.4  # half of the labels are right by chance
    Path("data/PPI/raw/test_feats.npy").write_bytes(b"damaged")
    assert "PPI/raw are damaged" in refused(lambda: load(data="ppi"))


def test_ppis_f1_and_accumulation():
    from sklearn.metrics import f1_score

    write_ppi(first_size=11)  # parts of a step have different numbers of nodes
    argv = ["--data", "ppi", "--epochs", "3", "--hidden", "8", "--val", "0", "--quiet"]
    found = {}
    for k in ("1", "2"):
        found[k] = train.main([*argv, "--accumulate", k, "--run-dir", f"run{k}"])
    one, two = (weights(f"run{k}") for k in ("1", "2"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4)
    assert found["2"]["train_loss"] == pytest.approx(found["1"]["train_loss"], rel=1e-4)
    args = train.parse_args(["--evaluate", "run1/last.pt"])
    _, _, test = load_graphs(args, Device(device_args()))
    model = train.build(args, test.facts)
    model.load_state_dict(one)
    logits = model.eval()(*test.everything().inputs)
    wanted = f1_score(test.graph.labels.numpy(), (logits > 0).numpy(), average="micro")
    assert found["1"]["test_f1"] == pytest.approx(wanted)


def test_training_on_molecules():
    write_molecules()
    for model in ("gcn", "sage", "gat"):
        argv = ["--model", model, "--data", "mutag", "--epochs", "15", "--lr", "0.02"]
        readout = ["--readout", "max" if model == "gcn" else "sum"]
        metrics = train.main([*argv, "--dropout", "0", *readout, "--quiet", "--run-dir", model])
        assert metrics["test_accuracy"] >= 0.75
    argv = ["--model", "gcn", "--data", "mutag", "--epochs", "2", "--dropout", "0", "--quiet"]
    for k in ("1", "2"):
        train.main([*argv, "--batch-size", "16", "--accumulate", k, "--run-dir", f"run{k}"])
    for key, value in weights("run1").items():
        torch.testing.assert_close(weights("run2")[key], value, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------- the user's tables

NODES = "id,label,split,a,b\nx,cat,train,1,0\ny,dog,train,0,2\nz,cat,test,1,1\nw,,,0,0\n"
EDGES = "source,target\nx,y\ny,z\nz,z\n"


def write_tables(nodes=NODES, edges=EDGES):
    Path("mine").mkdir(exist_ok=True)
    Path("mine/nodes.csv").write_text(nodes)
    Path("mine/edges.csv").write_text(edges)


def test_the_users_graph():
    write_tables(edges=EDGES + "y,x\nx,y\n")
    train, val, test = load(data="graph:mine")
    assert (train.indices.tolist(), val, test.indices.tolist()) == ([0, 1], None, [2])
    assert train.facts["classes"] == ["cat", "dog"]
    assert train.graph.labels.tolist() == [0, 1, 0, -1]
    pairs = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 2)]
    assert sorted(map(tuple, train.graph.edge_index.t().tolist())) == pairs
    wanted = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5], [0, 0]])
    torch.testing.assert_close(train.graph.features, wanted)
    raw = load(data="graph:mine", features="raw")[0].graph.features
    assert raw.tolist() == [[1, 0], [0, 2], [1, 1], [0, 0]]


def test_the_users_own_split_and_validation():
    rows = [f"{k},{k % 2},{('train', 'val', 'test')[k % 3]},{k}" for k in range(30)]
    write_tables("id,label,split,f\n" + "\n".join(rows), "source,target\n0,1\n")
    train, val, test = load(data="graph:mine")
    assert [len(part) for part in (train, val, test)] == [10, 10, 10]
    assert load(data="graph:mine", val=0)[1] is None


def test_classes_columns_and_ends_in_any_order():
    write_tables("id,label,a,b\nx,10,1,2\ny,9,3,4\nz,10,5,6\n", "source,target\nx,y\ny,z\n")
    wanted = read_tables(Path("mine"))
    assert load(data="graph:mine", features="raw")[0].facts["classes"] == ["9", "10"]
    write_tables("b,label,id,a\n2,10,x,1\n4,9,y,3\n6,10,z,5\n", "target,source\ny,x\nz,y\n")
    found = read_tables(Path("mine"))
    assert torch.equal(found.graph.features, wanted.graph.features)
    assert torch.equal(found.graph.edge_index, wanted.graph.edge_index)
    assert found.columns == ["a", "b"]
    write_tables("id,label\nx,--5\ny,6\nz,--5\nw,6\n", "source,target\nx,y\n")
    assert load(data="graph:mine")[0].facts["classes"] == ["--5", "6"]  # no number


def test_without_split_and_features():
    rows = [f"{k},{k % 2}" for k in range(50)]
    write_tables("id,label\n" + "\n".join(rows) + "\n", "source,target\n0,1\n")
    train, val, test = load(data="graph:mine", val=5)
    assert [len(part) for part in (train, val, test)] == [35, 5, 10]
    torch.testing.assert_close(train.graph.features, torch.eye(50))
    seen = [k for part in (train, val, test) for k in part.indices.tolist()]
    assert sorted(seen) == list(range(50))


def test_too_many_nodes_without_features(refused, monkeypatch):
    monkeypatch.setattr(tables, "MOST_WITHOUT_FEATURES", 3)
    write_tables("id,label\nx,1\ny,2\nz,1\nw,2\n", "source,target\nx,y\n")
    assert "4 nodes and no features" in refused(lambda: load(data="graph:mine"))


def test_quotes_spaces_marks_and_blank_lines():
    write_tables('\ufeffid, label ,f\n"a,b", cat ,1\n\nc,dog,2\n', 'source,target\n"a,b", c\n')
    found = read_tables(Path("mine"))
    assert found.graph.names == ["a,b", "c"]
    assert found.labels == ["cat", "dog"]
    assert found.graph.edge_index.tolist() == [[0, 1], [1, 0]]
    write_tables("id;label;f\n1,5;cat;1\nc;dog;2\n", "source\ttarget\n1,5\tc\n")
    other = read_tables(Path("mine"))
    assert other.graph.names == ["1,5", "c"]
    assert other.graph.edge_index.tolist() == found.graph.edge_index.tolist()


@pytest.mark.parametrize(
    ("nodes", "edges", "words"),
    [
        (NODES, EDGES + "x,q\n", ["edges.csv", "line 5", "'q'"]),
        (NODES, EDGES + "-1,x\n", ["edges.csv", "line 5", "'-1'"]),
        (NODES, EDGES + "x,y,z\n", ["edges.csv", "line 5", "3 cells"]),
        (NODES, EDGES + "x\n", ["edges.csv", "line 5", "1 cell,"]),
        (NODES, "a,b\nx,y\n", ["edges.csv", "line 1", "source,target"]),
        (NODES, "source,target\n", ["edges.csv", "no edges"]),
        (NODES, "", ["edges.csv", "empty"]),
        (NODES + "v,cat,train,nan,1\n", EDGES, ["nodes.csv", "line 6", "'nan'"]),
        (NODES + "v,cat,train,inf,1\n", EDGES, ["nodes.csv", "line 6", "'inf'"]),
        (NODES + "v,cat,train,,1\n", EDGES, ["nodes.csv", "line 6", "a is ''"]),
        (NODES + "v,cat,train,1e99,1\n", EDGES, ["nodes.csv", "line 6"]),
        (NODES + "v,cat,train,1\n", EDGES, ["nodes.csv", "line 6", "4 cells, not the 5"]),
        (NODES + "x,cat,train,1,1\n", EDGES, ["nodes.csv", "line 6", "twice"]),
        (NODES + ",cat,train,1,1\n", EDGES, ["nodes.csv", "line 6", "missing"]),
        (NODES + "v,,train,1,1\n", EDGES, ["nodes.csv", "line 6", "label is missing"]),
        (NODES + "v,cat,trian,1,1\n", EDGES, ["nodes.csv", "line 6", "'trian'"]),
        (NODES + "v,cow,test,1,1\n", EDGES, ["'cow'", "absent from the training set"]),
        (NODES.replace("test", ""), EDGES, ["nodes.csv", "part test"]),
        ("id,a\nx,1\ny,2\n", "source,target\nx,y\n", ["nodes.csv", "no labels"]),
        ("id,label,a\nx,,1\ny,,2\n", "source,target\nx,y\n", ["nodes.csv", "no labels"]),
        ("id,label,a\nx,1,1\ny,,2\n", "source,target\nx,y\n", ["one labelled node"]),
        ("name,label\nx,1\n", EDGES, ["nodes.csv", "line 1"]),
        ("id,a,a\nx,1,2\n", EDGES, ["nodes.csv", "line 1", "each once"]),
        ("id,label\n", EDGES, ["nodes.csv", "no nodes"]),
        ("", EDGES, ["nodes.csv", "empty"]),
    ],
)
def test_bad_tables(nodes, edges, words, refused):
    write_tables(nodes, edges)
    line = refused(lambda: load(data="graph:mine"))
    assert all(word in line for word in words), line


def test_names_are_compared_in_one_normal_form():
    write_tables("id,label,a\ne\u0301,1,1\nx,2,2\n", "source,target\n\u00e9,x\n")
    assert read_tables(Path("mine")).graph.names == ["\u00e9", "x"]


def test_one_class_is_said(capsys):
    write_tables("id,label,a\nx,1,1\ny,1,2\nz,1,2\n", "source,target\nx,y\n")
    load_graphs(flags(data="graph:mine"), Device(device_args(quiet=False)))
    assert "with one class there is nothing to tell apart" in capsys.readouterr().out


GRAPHS = "id,label\n" + "".join(f"g{k},{'ring' if k % 2 else 'star'}\n" for k in range(40))


def write_graphs(within=True, extra="", columns=("weight",)):
    """Rings and stars of five nodes, which are numbered anew in each graph, or else named."""
    Path("mine").mkdir(exist_ok=True)
    nodes, edges = [",".join(["graph", "id", *columns])], []
    for k in range(40):
        name = (lambda i, k=k: str(i)) if within else (lambda i, k=k: f"{k}-{i}")
        for i in range(5):
            nodes.append(",".join([f"g{k}", name(i), *(str(10 * k + i) for _ in columns)]))
            pair = (i, (i + 1) % 5) if k % 2 else (0, i)
            if pair[0] != pair[1]:
                edges.append(f"g{k}," * within + ",".join(map(name, pair)))
    head = "graph," * within + "source,target\n"
    Path("mine/nodes.csv").write_text("\n".join(nodes) + "\n")
    Path("mine/edges.csv").write_text(head + "\n".join(edges) + "\n" + extra)
    Path("mine/graphs.csv").write_text(GRAPHS)


@pytest.mark.parametrize("within", [True, False])
def test_graphs_in_tables(within):
    write_graphs(within)
    train_part, val, test = load(data="graphs:mine", features="raw")
    assert (len(train_part), len(val), len(test)) == (33, 3, 4)
    assert train_part.facts["classes"] == ["ring", "star"]
    batch = test.some(torch.tensor([1, 2]))
    features, edge_index, graph_of, num_graphs = batch.inputs
    assert (graph_of.tolist(), num_graphs) == ([0] * 5 + [1] * 5, 2)
    assert batch.labels.tolist() == [0, 1]
    assert features[:, 0].tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 23, 24]
    ring = {(i, (i + 1) % 5) for i in range(5)}
    star = {(5, 5 + i) for i in range(1, 5)}
    pairs = ring | star | {(b, a) for a, b in ring | star}
    assert set(map(tuple, edge_index.t().tolist())) == pairs


def test_graphs_of_ones_own_are_learned(refused):
    write_graphs(columns=())
    argv = ["--data", "graphs:mine", "--epochs", "25", "--quiet", "--dropout", "0"]
    for model in ("gcn", "sage", "gat"):
        metrics = train.main([*argv, "--model", model, "--lr", "0.02", "--run-dir", model])
        assert metrics["test_accuracy"] == 1.0
    found = sample.main(["--checkpoint", "gcn/best.pt", "--graph", "mine", "--out", "all"])
    assert [found[f"g{k}"][0] for k in (0, 1, 39)] == ["star", "ring", "ring"]
    evaluate = ["--evaluate", "gcn/best.pt", "--quiet"]
    before = train.main(evaluate)
    head, *rows = Path("mine/graphs.csv").read_text().splitlines()
    Path("mine/graphs.csv").write_text("\n".join([head, *rows[::-1]]))
    after = train.main(evaluate)  # of the graphs that were held out, wherever they stand
    assert after == {name: pytest.approx(value, rel=1e-5) for name, value in before.items()}
    write_graphs(columns=("weight",))
    line = refused(lambda: train.main(evaluate))
    assert "has the column 'weight', and the network was trained without features" in line


def test_graphs_in_another_order_are_held_out_alike():
    def held_out(**more):
        parts = load(data="graphs:mine", features="raw", **more)
        return [{part.graph.names[i] for i in part.indices.tolist()} for part in parts], parts[0]

    write_graphs()
    before, train_part = held_out()
    head, *rows = Path("mine/graphs.csv").read_text().splitlines()
    Path("mine/graphs.csv").write_text("\n".join([head, *rows[::-1]]))
    assert held_out()[0] != before
    assert held_out(stored={"dataset": train_part.facts})[0] == before


def test_graphs_split_of_their_own(refused):
    write_graphs()
    rows = [f"g{k},{k % 2},{('train', 'val', 'test')[k % 3]}" for k in range(39)]
    Path("mine/graphs.csv").write_text("id,label,split\n" + "\n".join(rows) + "\ng39,,\n")
    parts = load(data="graphs:mine")
    assert [len(part) for part in parts] == [13, 13, 13]
    assert parts[2].indices.tolist() == list(range(2, 39, 3))
    assert "has a split of its own" in refused(lambda: load(data="graphs:mine", fold=2))


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("graphs.csv", "g3,", "g2,", ["graphs.csv", "line 5", "'g2' is there twice"]),
        ("graphs.csv", GRAPHS, GRAPHS + "g40,ring\n", ["graphs.csv: line 42", "'g40'"]),
        ("graphs.csv", GRAPHS, "id,label\n", ["graphs.csv", "no graphs"]),
        ("graphs.csv", "id,label", "name,label", ["graphs.csv", "line 1", "id"]),
        ("nodes.csv", "g0,3", "gx,3", ["nodes.csv", "line 5", "'gx'", "40 of graphs.csv"]),
        ("nodes.csv", "g0,3", "g0,2", ["nodes.csv", "line 5", "'2' is there twice"]),
        ("nodes.csv", "g0,3,3", "g0,3,C", ["nodes.csv", "line 5", "weight is 'C'"]),
        ("nodes.csv", "graph,id", "set,id", ["nodes.csv", "line 1", "graph"]),
        ("edges.csv", "g0,0,3", "g0,0,9", ["edges.csv", "line 4", "'9'", "graph 'g0'"]),
        ("edges.csv", "g0,0,3", "gx,0,3", ["edges.csv", "line 4", "graph 'gx'"]),
        ("edges.csv", "graph,source", "weight,source", ["edges.csv", "line 1", "'weight'"]),
    ],
)
def test_bad_tables_of_graphs(file, old, new, words, refused):
    write_graphs()
    path = Path("mine", file)
    path.write_text(path.read_text().replace(old, new, 1))
    line = refused(lambda: load(data="graphs:mine"))
    assert all(word in line for word in words), line


def test_edges_between_and_without_graphs(refused):
    write_graphs(within=False, extra="0-1,1-1\n")
    line = refused(lambda: load(data="graphs:mine"))
    assert "edges.csv: line 182 joins two graphs, 'g0' and 'g1'" in line
    write_graphs(within=True)
    path = Path("mine/edges.csv")
    path.write_text("source,target\n0,1\n")
    assert "several graphs have a node '0'" in refused(lambda: load(data="graphs:mine"))
    Path("mine/graphs.csv").unlink()
    assert "mine/graphs.csv" in refused(lambda: load(data="graphs:mine"))


def test_missing_tables(refused):
    assert "mine is not a folder" in refused(lambda: load(data="graph:mine"))
    Path("mine").mkdir()
    assert "mine/nodes.csv" in refused(lambda: load(data="graph:mine"))
    write_tables()
    Path("mine/edges.csv").unlink()
    assert "mine/edges.csv" in refused(lambda: load(data="graph:mine"))
    write_tables()
    Path("mine/nodes.csv").write_bytes(b"id,label\n\xff\xfe,1\n")
    assert "UTF-8" in refused(lambda: load(data="graph:mine"))


def test_bad_features_of_a_set(refused, monkeypatch):
    source = graphs.karate(flags())
    source.parts["train"].graph.features[3, 3] = float("nan")
    monkeypatch.setitem(graphs.READERS, "karate", lambda args: source)
    assert "not finite" in refused(load)


def test_validation_and_limit(refused):
    assert "absent from the training set: change --limit" in refused(lambda: load(limit=2))
    assert "--val 4 leaves nothing of 4" in refused(lambda: load(val=4))
    assert "absent from the training set: change --val" in refused(lambda: load(val=1))
    assert "--window needs a validation set" in refused(lambda: load(window=3))


def test_rows_are_normalised():
    x = torch.tensor([[1.0, 3.0], [0.0, 0.0], [-1.0, 1.0]])
    wanted = torch.tensor([[0.25, 0.75], [0.0, 0.0], [-0.5, 0.5]])
    torch.testing.assert_close(row_normalised(x), wanted)


def test_columns_of_zeros_and_ones_stay():
    x = torch.tensor([[1.0, 0.0, 5.0], [3.0, 1.0, 5.0]])
    mean, std = column_scales(x)
    assert (mean.tolist(), std.tolist()) == ([2, 0, 0], [1, 1, 1])
