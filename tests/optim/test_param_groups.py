"""param_groups: which parameters decay, under which names they appear, what is refused."""

import pytest
import torch
import transformers
from torch import nn

import fusedstep.optim
from fusedstep.optim import param_groups


class Everything(nn.Module):
    """Layers of torch.nn with unusual names for their parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 2, 3)
        self.embedding = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.other_attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
        self.lstm = nn.LSTM(4, 4, proj_size=2, bidirectional=True)
        self.cell = nn.GRUCell(4, 4)
        self.bilinear = nn.Bilinear(2, 3, 4)
        self.prelu = nn.PReLU()
        self.free = nn.Parameter(torch.zeros(3))
        self.pos_bias_u = nn.Parameter(torch.zeros(3))
        self.unbiased = nn.Parameter(torch.zeros(3))
        self.relative_bias = nn.Embedding(5, 4)  # a table of biases


NORMS = [
    nn.LayerNorm(4),
    nn.RMSNorm(4),
    nn.GroupNorm(2, 4),
    nn.BatchNorm1d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm2d(4, affine=True),
]


def sides(groups):
    """The names that decay, and the names that do not."""
    decayed, spared = [], []
    for group in groups:
        (decayed if group["weight_decay"] else spared).extend(name for name, _ in group["params"])
    return decayed, spared


def test_a_bias_is_known_by_a_word_in_its_name():
    decayed, spared = sides(param_groups(Everything(), 0.1))
    assert decayed == [
        "free",
        "unbiased",
        "linear.weight",
        "conv.weight",
        "embedding.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "other_attention.q_proj_weight",
        "other_attention.k_proj_weight",
        "other_attention.v_proj_weight",
        "other_attention.out_proj.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "lstm.weight_hr_l0",
        "lstm.weight_ih_l0_reverse",
        "lstm.weight_hh_l0_reverse",
        "lstm.weight_hr_l0_reverse",
        "cell.weight_ih",
        "cell.weight_hh",
        "bilinear.weight",
        "prelu.weight",
    ]
    assert spared == [
        "pos_bias_u",
        "linear.bias",
        "conv.bias",
        "attention.in_proj_bias",
        "attention.bias_k",
        "attention.bias_v",
        "attention.out_proj.bias",
        "other_attention.in_proj_bias",
        "other_attention.out_proj.bias",
        "lstm.bias_ih_l0",
        "lstm.bias_hh_l0",
        "lstm.bias_ih_l0_reverse",
        "lstm.bias_hh_l0_reverse",
        "cell.bias_ih",
        "cell.bias_hh",
        "bilinear.bias",
        "relative_bias.weight",
    ]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_normalization_layers_do_not_decay(norm):
    decayed, spared = sides(param_groups(nn.Sequential(nn.Linear(4, 4, bias=False), norm), 0.1))
    assert decayed == ["0.weight"]
    assert spared == [f"1.{name}" for name, _ in norm.named_parameters()]


def test_a_normalization_layer_is_known_by_its_class_and_its_bases_not_by_its_container():
    class T5LayerNORM(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

    class Centered(nn.LayerNorm):
        pass

    class PreNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.Linear(4, 4)
            self.inner, self.centered = T5LayerNORM(), Centered(4)

    decayed, spared = sides(param_groups(PreNorm(), 0.1))
    assert decayed == ["norm.weight"]
    assert spared == ["norm.bias", "inner.scale", "centered.weight", "centered.bias"]


@pytest.mark.parametrize(("kind", "name", "decays"), [
    ("LayerNormFp32", "scale", False),
    ("RMSNormalization", "scale", False),
    ("BatchNorm2dSync", "scale", False),
    ("layernorm", "scale", False),
    ("EnormousModel", "scale", True),
    ("NormalizingFlow", "scale", True),
    ("Plain", "attention_biases", False),
    ("Plain", "bias1", False),
    ("Plain", "Bias", False),
    ("Plain", "biased", True),
    ("Plain", "debias", True),
])  # fmt: skip
def test_words_are_whole_words(kind, name, decays):
    module = type(kind, (nn.Module,), {})()
    module.register_parameter(name, nn.Parameter(torch.ones(2)))
    decayed, spared = sides(param_groups(module, 0.1))
    assert (decayed, spared) == (([name], []) if decays else ([], [name]))


def test_a_layer_with_weights_is_no_normalization_whatever_it_is_called():
    class NormEmbedding(nn.Embedding):
        pass

    decayed, spared = sides(param_groups(NormEmbedding(3, 4), 0.1))
    assert decayed == ["weight"] and not spared


def test_a_module_may_hold_one_that_holds_it():
    inner, outer = nn.Linear(2, 2), nn.Module()
    outer.inner = inner
    inner.outer = outer
    decayed, spared = sides(param_groups(outer, 0.1))
    assert (decayed, spared) == (["inner.weight"], ["inner.bias"])


TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 11}
MODELS = {
    "bert": transformers.BertConfig(intermediate_size=8, **TINY),
    "llama": transformers.LlamaConfig(intermediate_size=8, **TINY),
    "t5": transformers.T5Config(
        d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=11
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_trainer_of_transformers_chooses_the_same(name):
    model = transformers.AutoModel.from_config(MODELS[name])
    theirs = set(transformers.Trainer.get_decay_parameter_names(None, model))
    decayed, spared = sides(param_groups(model, 0.1))
    known = [name for name, _ in model.named_parameters()]
    assert decayed == [name for name in known if name in theirs]
    assert spared == [name for name in known if name not in decayed]


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("options", "decayed"),
    [
        ({}, ["0.weight", "2.weight"]),
        ({"include": ".*"}, ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]),
        ({"include": [r"^1\."]}, ["0.weight", "1.weight", "1.bias", "2.weight"]),
        ({"include": "bias$"}, ["0.weight", "0.bias", "1.bias", "2.weight", "2.bias"]),
        ({"exclude": "0"}, ["2.weight"]),
        ({"exclude": ["0", "2"]}, []),
        ({"exclude": ["nothing"]}, ["0.weight", "2.weight"]),
        ({"exclude": [".*"], "include": ["2", "1.w"]}, ["1.weight", "2.weight", "2.bias"]),
        ({"exclude": iter("02"), "include": iter(["2"])}, ["2.weight", "2.bias"]),
        ({"include": [], "exclude": ()}, ["0.weight", "2.weight"]),
    ],
    ids=str,
)
def test_include_comes_before_exclude_before_the_usual_rule(options, decayed):
    model = network()
    found, spared = sides(param_groups(model, 0.1, **options))
    assert found == decayed
    assert spared == [name for name, _ in model.named_parameters() if name not in decayed]


def test_groups_hold_the_parameters_under_their_names():
    model = network()
    groups = param_groups(model, "0.5")
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    known = dict(model.named_parameters())
    assert all(known[name] is param for group in groups for name, param in group["params"])


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    assert sides(param_groups(model, 0.1)) == (
        ["2.weight"],
        ["1.weight", "1.bias", "2.bias"],
    )
    assert len(param_groups(model, 0.1, include="")) == 1
    assert len(param_groups(model, 0.1, exclude="")) == 1
    with pytest.raises(ValueError, match="model has no parameter that requires a gradient"):
        param_groups(model.requires_grad_(False), 0.1)


def tied():
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "head": nn.Linear(4, 4)})
    model["head"].weight = model["embedding"].weight
    return model


@pytest.mark.parametrize(
    ("options", "decayed"),
    [
        ({}, ["embedding.weight"]),
        ({"exclude": "embedding"}, []),
        ({"exclude": "head"}, []),
        ({"exclude": "embedding", "include": "head.w"}, ["embedding.weight"]),
    ],
    ids=str,
)
def test_a_tied_parameter_is_there_once_and_known_by_all_its_names(options, decayed):
    found, spared = sides(param_groups(tied(), 0.1, **options))
    assert found == decayed
    assert sorted(found + spared) == ["embedding.weight", "head.bias"]


def test_a_shared_module_is_known_by_all_its_names():
    layer = nn.Linear(4, 4, bias=False)
    model = nn.ModuleDict({"first": layer, "second": layer})
    assert sides(param_groups(model, 0.1)) == (["first.weight"], [])
    assert sides(param_groups(model, 0.1, exclude="second")) == ([], ["first.weight"])


def test_a_parameter_that_is_a_bias_or_a_norms_anywhere_does_not_decay():
    model = nn.ModuleDict(
        {"a": nn.Bilinear(1, 1, 4), "b": nn.Linear(4, 1), "norm": nn.LayerNorm(4)}
    )
    model["a"].weight = model["norm"].weight
    model["b"].weight = model["a"].bias
    model["shared"] = model["b"]
    assert sides(param_groups(model, 0.1)) == ([], ["a.weight", "a.bias", "b.bias", "norm.bias"])


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, fusedstep.optim.AdamW])
def test_optimizers_take_the_groups_and_keep_the_names(optimizer):
    model = network()
    made = optimizer(param_groups(model, 0.5), lr=0.1)
    assert made.param_groups[0]["param_names"] == ["0.weight", "2.weight"]
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    before = [param.detach().clone() for param in model.parameters()]
    made.step()
    changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert changed == [True, False, False, False, True, False]


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (["fine", "(bias"], ValueError, r"holds '\(bias', which is no regular expression"),
        ("*", ValueError, r"holds '\*', which is no regular expression"),
        ([3], TypeError, "should hold strings but holds: 3"),
        ([b"bias"], TypeError, "should hold strings but holds: b'bias'"),
        (3, TypeError, "should be a regular expression or a list of them but is: 3"),
    ],
)
def test_what_is_no_expression_is_refused(argument, value, kind, text):
    with pytest.raises(kind, match=f"^{argument} {text}"):
        param_groups(network(), 0.1, **{argument: value})


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), None, "much"])
def test_a_decay_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"^weight_decay should be a .*number"):
        param_groups(network(), bad)


@pytest.mark.parametrize("model", [[], network().parameters(), nn.Linear], ids=str)
def test_what_is_no_module_is_refused(model):
    with pytest.raises(TypeError, match=r"^model should be a torch.nn.Module but is: "):
        param_groups(model, 0.1)
