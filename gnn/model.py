"""Graph networks: the contents page of this folder.

gcn.py: graph convolutional networks (Kipf and Welling 2016); sage.py: GraphSAGE (Hamilton and
others 2017), with its sampler and unsupervised loss; gat.py: graph attention networks (Veličković
and others 2017); graph.py: the sums over edges that they share; readout.py: whole graphs.

All are called alike: `model(features, edge_index)` of (N, C) and (2, E), sources then targets, to
logits (N, K).
"""

from gnn.gat import gat
from gnn.gcn import gcn
from gnn.readout import GraphClassifier
from gnn.sage import sage

MODELS = {"gcn": gcn, "sage": sage, "gat": gat}

__all__ = ["MODELS", "GraphClassifier", "gat", "gcn", "sage"]
