"""On a GPU, with both backends: streams, steps in CUDA graphs, launches that are made again, and a
GradScaler that leaves its scale to the step."""

import pytest
import torch

import fusedstep.optim
from tests.support.cases import make_params, set_grads
from tests.support.gpu_runs import (
    BACKENDS,
    assert_same_numbers,
    backend_on,
    captured,
    give_gradients,
    gradients,
    numbers,
    params_on,
    train,
)
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.gpu

ADAMW, ADAFACTOR = fusedstep.optim.AdamW, fusedstep.optim.Adafactor
SHAPES = [(), (7,), (1025,), (1, 9), (33, 17), (3, 5, 7), (0,), (300, 256), (9000, 3, 3)]
OPTIONS = {
    "adamw": (ADAMW, {"lr": 0.05, "capturable": True}),
    "adamw-fused": (ADAMW, {"lr": 0.05, "fused": True, "weight_decay": 0.1}),
    "adamw-amsgrad": (ADAMW, {"amsgrad": True, "maximize": True, "capturable": True}),
    "sgd": (fusedstep.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "nadam": (fusedstep.optim.NAdam, {"lr": 0.05, "capturable": True}),
    "asgd": (fusedstep.optim.ASGD, {"lr": 0.05, "t0": 2.0, "capturable": True}),
    "adafactor": (ADAFACTOR, {"capturable": True}),
    "adafactor-decay": (ADAFACTOR, {"lr": 0.3, "weight_decay": 0.2, "capturable": True}),
    "adamw-clip": (ADAMW, {"lr": 0.05, "max_grad_norm": 0.5, "capturable": True}),
    "adafactor-clip": (ADAFACTOR, {"max_grad_norm": 0.5, "capturable": True}),
    "adafactor-capped": (ADAFACTOR, {"eps": (8e-3, 1e-3), "capturable": True}),
}
each_option = pytest.mark.parametrize("name", OPTIONS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
WARM_UP, REPLAYS = 2, 4


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request, device, monkeypatch):
    """The default backend of the test's optimizers."""
    monkeypatch.setenv("FUSEDSTEP_BACKEND", backend_on(request.param, device))


def make(name, params, **more):
    kind, options = OPTIONS[name]
    return kind(params, **{**options, **more})


def write_gradients(params, dtype, step):
    """Writes gradients in place, as a graph needs it."""
    given = gradients(tuple(tuple(p.shape) for p in params), dtype, step)
    for param, grad in zip(params, given, strict=True):
        if param.grad is None:
            param.grad = torch.empty_like(param)
        param.grad.copy_(grad)


def eager(name, device, dtype, steps=WARM_UP + REPLAYS):
    params = params_on(device, dtype, SHAPES)
    return train(make(name, params), params, dtype, steps)


def on_side_stream(work):
    """Runs work on a side stream, as torch's documentation does before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)


def warmed_up(name, device, dtype, before=lambda step: None, **more):
    params = params_on(device, dtype, SHAPES)
    optimizer = make(name, params, **more)

    def work():
        for step in range(WARM_UP):
            before(step)
            write_gradients(params, dtype, step)
            optimizer.step()

    on_side_stream(work)
    return optimizer, params


@each_dtype
@each_option
def test_a_step_follows_what_its_stream_did_before(name, dtype, gpu):
    """Gradients are written late on a stream. A launch on another one would read the old ones."""
    expected = eager(name, gpu, dtype, 4)
    params = params_on(gpu, dtype, SHAPES)
    optimizer = make(name, params)
    shapes = tuple(tuple(p.shape) for p in params)
    there = [[grad.to(gpu) for grad in gradients(shapes, dtype, step)] for step in range(4)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for param in params:
            param.grad = torch.full_like(param, 7.0)
        for grads in there:
            torch.cuda._sleep(40_000_000)  # cycles: about 20 ms
            for param, grad in zip(params, grads, strict=True):
                param.grad.copy_(grad)
            optimizer.step()
            for param in params:
                param.grad.fill_(7.0)
    torch.cuda.synchronize()
    assert_same_numbers(numbers(optimizer, params), expected)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_triton_makes_later_launches_without_its_binder(name, gpu, monkeypatch):
    """On the real driver, as tests/triton/test_again.py shows on a libcuda that does nothing."""
    pytest.importorskip("triton", minversion="3.4")
    from fusedstep.kernels import launch

    params, ordinary, real = params_on(gpu, torch.float32, SHAPES), [], launch.run
    monkeypatch.setattr(launch, "run", lambda *own: ordinary.append(own[0]) or real(*own))
    options = {**OPTIONS[name][1], "capturable": False, "backend": "triton"}
    optimizer = OPTIONS[name][0](params, **options)
    for step in range(3):
        write_gradients(params, torch.float32, step)
        ordinary.clear()
        optimizer.step()
        assert bool(ordinary) == (step == 0)


@each_dtype
@each_option
def test_replays_of_a_captured_step_equal_eager_steps(name, dtype, gpu):
    optimizer, params = warmed_up(name, gpu, dtype)
    graph = captured(optimizer.step)
    for step in range(WARM_UP, WARM_UP + REPLAYS):
        write_gradients(params, dtype, step)
        graph.replay()
    found = numbers(optimizer, params)
    if name != "sgd":  # it has no counter
        assert {own["step"].item() for own in found} == {WARM_UP + REPLAYS}
    assert_same_numbers(found, eager(name, gpu, dtype))


@each_option
def test_eager_steps_go_on_between_replays(name, gpu):
    """Eager steps move the gradients. The graph keeps its addresses."""
    optimizer, params = warmed_up(name, gpu, torch.float32)
    graph = captured(optimizer.step)
    static = [param.grad for param in params]
    for step in range(WARM_UP, WARM_UP + REPLAYS):
        if step % 2:
            give_gradients(params, torch.float32, step)
            optimizer.step()
        else:
            for param, grad in zip(params, static, strict=True):
                param.grad = grad
            write_gradients(params, torch.float32, step)
            graph.replay()
    assert_same_numbers(numbers(optimizer, params), eager(name, gpu, torch.float32))


def losses(params, inputs):
    """A loss with gradient 2 p x, so no sum has an order that could change."""
    return sum((param * param * x).sum() for param, x in zip(params, inputs, strict=True))


@each_dtype
@each_option
def test_gradients_may_be_made_by_a_captured_backward(name, dtype, gpu):
    def inputs(step):
        return gradients(tuple(map(tuple, SHAPES)), dtype, step)

    twins = params_on(gpu, dtype, SHAPES)
    twin = make(name, twins)
    for step in range(3 + REPLAYS):
        twin.zero_grad(set_to_none=True)
        losses(twins, [x.to(gpu) for x in inputs(step)]).backward()
        twin.step()

    params = params_on(gpu, dtype, SHAPES)
    optimizer = make(name, params)
    static = [x.to(gpu) for x in inputs(0)]

    def fill(step):
        for own, x in zip(static, inputs(step), strict=True):
            own.copy_(x)

    def forth_and_back():
        losses(params, static).backward()
        optimizer.step()

    def work():
        for step in range(3):
            optimizer.zero_grad(set_to_none=True)
            fill(step)
            forth_and_back()

    on_side_stream(work)
    optimizer.zero_grad(set_to_none=True)
    graph = captured(forth_and_back)
    for step in range(3, 3 + REPLAYS):
        fill(step)
        graph.replay()
    assert_same_numbers(numbers(optimizer, params), numbers(twin, twins))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_learning_rate_on_the_device_may_change_between_replays(name, gpu):
    rates = [0.05, 0.04, 0.03, 0.02, 0.01, 0.005]

    lr, others = (torch.tensor(1.0, dtype=torch.float64, device=gpu) for _ in range(2))

    twins = params_on(gpu, torch.float32, SHAPES)
    twin = make(name, twins, lr=others)
    for step, value in enumerate(rates):
        others.fill_(value)
        train(twin, twins, torch.float32, 1, first=step)

    optimizer, params = warmed_up(
        name, gpu, torch.float32, before=lambda step: lr.fill_(rates[step]), lr=lr
    )
    graph = captured(optimizer.step)
    for step in range(WARM_UP, len(rates)):
        lr.fill_(rates[step])
        write_gradients(params, torch.float32, step)
        graph.replay()
    assert_same_numbers(numbers(optimizer, params), numbers(twin, twins))


def test_what_a_graph_would_repeat_wrongly_is_refused(gpu):
    unready = params_on(gpu, torch.float32, SHAPES)
    write_gradients(unready, torch.float32, 0)
    with pytest.raises(RuntimeError, match="run one warm-up step before capture"):
        captured(make("adamw", unready).step)
    for name in ("adamw", "adafactor"):
        optimizer, _ = warmed_up(name, gpu, torch.float32, capturable=False)
        with pytest.raises(RuntimeError, match="needs capturable=True"):
            captured(optimizer.step)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}], ids=str)
def test_a_grad_scaler_on_the_device_trains_as_with_torch(options, device):
    """The third step overflows: it is skipped, and the scale is halved."""
    shapes, runs = [(7,), (1025,), (33, 17)], []
    for kind in (ADAMW, torch.optim.AdamW):
        params = params_on(device, torch.float32, shapes)
        optimizer = kind(params, lr=0.05, fused=True, **options)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, growth_interval=3)
        scales, grads = [], []
        for step in range(8):
            optimizer.zero_grad()
            factor = float("inf") if step == 2 else 0.1
            scaler.scale(sum((p * p).sum() for p in params) * factor).backward()
            if step == 5:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            before = [p.detach().clone() for p in params]
            scaler.step(optimizer)
            if step == 2:
                assert all(map(torch.equal, params, before))
            scaler.update()
            scales.append(scaler.get_scale())
            grads += [p.grad for p in params] if step != 2 else []
        runs.append((optimizer, params, scales, grads))
    (ours, ours_params, ours_scales, mine), (peer, peer_params, peer_scales, its) = runs
    assert ours_scales == peer_scales and 512.0 in ours_scales
    assert_close(ours, ours_params, peer, peer_params)
    for own, other in zip(mine, its, strict=True):  # the step leaves unscaled gradients
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    assert all(state["step"] == 7 for state in ours.state.values())


def test_a_captured_step_skips_gradients_that_overflowed(gpu):
    """The graph reads `grad_scale` and `found_inf` when it runs."""
    params = params_on(gpu, torch.float32, [(1025,), (33, 17)])
    optimizer = ADAMW(params, lr=0.05, fused=True)
    optimizer.grad_scale = torch.tensor(4.0, device=gpu)
    optimizer.found_inf = torch.tensor(0.0, device=gpu)
    twins = make_params([(1025,), (33, 17)])
    twin = ADAMW(twins, lr=0.05, backend="reference")

    def write(step):
        set_grads(twins, step)
        for param, other in zip(params, twins, strict=True):
            if param.grad is None:
                param.grad = torch.empty_like(param)
            param.grad.copy_(other.grad * 4.0)

    def work():
        write(0)
        optimizer.step()

    on_side_stream(work)
    twin.step()
    graph = captured(optimizer.step)
    for step in range(1, 6):
        write(step)
        optimizer.found_inf.fill_(float(step == 3))
        graph.replay()
        if step != 3:
            twin.step()
    for own, other in zip(numbers(optimizer, params), numbers(twin, twins), strict=True):
        for name, value in other.items():
            torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-6)
