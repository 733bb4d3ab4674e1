"""All engines compute the same actions as `DiffusionPolicy.predict_action`."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import Tensor

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.prefix import prefix_inputs
from ddp_cli.errors import ConfigError
from ddp_cli.inference.engine import make_predict_fn
from ddp_cli.inference.onnx_encoder import add_encoder
from ddp_cli.inference.onnx_graph import GraphBuilder
from ddp_cli.inference.onnx_policy import DEFAULT_OPSET, build_policy_graph, compose_policy_graph
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.schema import ActionPart, Camera, Schema, Vector
from ddp_cli.tasks import Task

TINY = {"task": "square", "obs": "state", "n_layer": 3, "n_emb": 32, "n_head": 4, "num_inference_steps": 12}
UNFOLDABLE = [{"n_cond_layers": 1}, {"obs_as_cond": False}, {"obs_as_cond": False, "time_as_cond": False}]


def make_trained_policy(**settings: object) -> DiffusionPolicy:
    """A policy whose biases and norms differ from their initial values, as after training."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(**TINY | settings)).eval()
    for parameter in policy.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return policy


def random_low_dim(policy: DiffusionPolicy, batch_size: int) -> dict[str, Tensor]:
    return {key: torch.randn(batch_size, policy.config.n_obs_steps, d) for key, d in policy.config.low_dim.items()}


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"causal_attn": False},
        {"pred_action_steps_only": True},
        {"n_obs_steps": 4, "horizon": 16, "n_head": 2, "sampler": "ddim"},
        {"n_obs_steps": 1, "prediction_type": "sample", "sampler": "dpm"},
        {"p_drop_attn": 0.3, "p_drop_emb": 0.1},
        {"fusion": 16, "prediction_type": "sample"},
    ],
)
def test_the_folded_denoiser_equals_the_network(engine: str, batch_size: int, settings: dict) -> None:
    policy = make_trained_policy(**settings)
    predict = make_predict_fn(policy, engine)
    for seed in (0, 1):  # the second prediction uses another memory
        obs = random_low_dim(policy, batch_size)
        expected = policy.predict_action(obs, torch.Generator().manual_seed(seed))["action"]
        torch.testing.assert_close(predict(obs, torch.Generator().manual_seed(seed)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"encoder": "small", "fusion": 16}, {"encoder": "small", "crop_shape": (83, 84)}, {"encoder": "resnet18"}],
)
def test_images_are_encoded_by_the_graph_as_by_torch(settings: dict) -> None:
    policy = make_trained_policy(obs="image", **settings)
    for name, buffer in policy.normalizer.named_buffers():
        buffer.uniform_(0.5, 1.5) if name.endswith("scale") else buffer.uniform_(-0.3, 0.3)
    shape = (2, policy.config.n_obs_steps, 3, 84, 84)
    images = {key: torch.randint(0, 256, shape, dtype=torch.uint8) for key in policy.config.image_keys}
    obs = random_low_dim(policy, 2) | images
    expected, actual = (
        make_predict_fn(policy, engine)(obs, torch.Generator().manual_seed(0)) for engine in ("torch", "onnx")
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_an_observation_may_have_the_name_of_a_value_of_the_graph() -> None:
    names = ("x", "i", "clean", "condition", "prev_clean", "x_next", "x_last", "clean_last", "prefix")
    schema = Schema(rate=10, vectors={name: Vector(width=2) for name in names}, action=(ActionPart(name="a", width=2),))
    policy = make_trained_policy(task=Task("names", schema), actions="recorded")
    obs = random_low_dim(policy, 2)
    expected, actual = (
        make_predict_fn(policy, engine)(obs, torch.Generator().manual_seed(0)) for engine in ("torch", "onnx")
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    schema = Schema(rate=10, cameras={"type": Camera(height=84, width=84)}, action=schema.action)
    with pytest.raises(ConfigError, match=r"a camera cannot be called 'type'.*--keys NAME=type"):
        make_trained_policy(task=Task("names", schema), actions="recorded", obs="image")


def test_the_compiled_denoiser_equals_the_network() -> None:
    policy = make_trained_policy()
    obs = random_low_dim(policy, 1)
    expected = policy.predict_action(obs, torch.Generator().manual_seed(0))["action"]
    actual = make_predict_fn(policy, "compile")(obs, torch.Generator().manual_seed(0))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ["torch", "onnx", "compile"])
@pytest.mark.parametrize("n", [0, 2, 4])
def test_engines_continue_a_prefix_as_the_network_does(engine: str, n: int) -> None:
    policy = make_trained_policy(prefix_steps=4, clip_sample=False, sampler="ddim")
    policy.normalizer.get_buffer("action_scale").uniform_(0.5, 1.5)
    policy.normalizer.get_buffer("action_offset").uniform_(-0.3, 0.3)
    obs, prefix = random_low_dim(policy, 2), torch.rand(2, n, 7)
    inputs = prefix_inputs(policy.config, prefix, 2)
    expected = policy.predict_action(obs, torch.Generator().manual_seed(0), **inputs)["action"]
    actual = make_predict_fn(policy, engine)(obs, torch.Generator().manual_seed(0), prefix)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual[:, :n], prefix)
    if n == 0:
        plain = make_predict_fn(policy, engine)(obs, torch.Generator().manual_seed(0))
        assert torch.equal(actual, plain)


def test_the_loop_takes_only_constants_from_the_graph_around_it() -> None:
    """Other values would not be found by OpenVINO."""
    graph = build_policy_graph(make_trained_policy(prefix_steps=4, sampler="ddpm", prediction_type="sample")).graph
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    own = {x.name for x in (*body.input, *body.initializer)} | {x for node in body.node for x in node.output}
    taken = {x for node in body.node for x in node.input if x} - own
    assert taken
    assert taken <= {x.name for x in graph.initializer}


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_engines_inpaint_a_prefix_without_marks(engine: str) -> None:
    policy = make_trained_policy()
    obs, prefix = random_low_dim(policy, 1), torch.rand(1, 3, 7) - 0.5
    with pytest.raises(ConfigError, match="takes no prefix"):
        make_predict_fn(policy, engine)(obs, torch.Generator(), prefix)
    policy.set_inpainting_steps(3)
    inputs = prefix_inputs(policy.config, prefix, 1)
    expected = policy.predict_action(obs, torch.Generator().manual_seed(0), **inputs)["action"]
    actual = make_predict_fn(policy, engine)(obs, torch.Generator().manual_seed(0), prefix)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual[:, :3], prefix)


def test_a_policy_that_cannot_be_folded_takes_a_prefix() -> None:
    policy = make_trained_policy(n_cond_layers=1, prefix_steps=4)
    prefix = torch.rand(1, 2, 7) - 0.5
    actual = make_predict_fn(policy, "torch")(random_low_dim(policy, 1), torch.Generator().manual_seed(0), prefix)
    torch.testing.assert_close(actual[:, :2], prefix)


@pytest.mark.parametrize("settings", [{}, {"n_obs_steps": 3, "n_action_steps": 4, "sampler": "ddim"}])
def test_the_graph_inpaints_as_torch_does(settings: dict) -> None:
    """With a denoiser that is the same simple function in both: each of its outputs depends on the whole trajectory."""
    policy = make_trained_policy(obs_as_cond=False, n_layer=1, **settings)
    policy.denoiser.forward = lambda x, _timestep, _cond, _given: torch.tanh(x.mean(dim=(1, 2), keepdim=True) + x)

    def build_denoiser(g: GraphBuilder, x: str) -> str:
        return g("Tanh", g("Add", g("ReduceMean", x, g.int64(1, 2), keepdims=1), x))

    main = GraphBuilder("main/")
    model = compose_policy_graph(policy, main, add_encoder(main, policy), build_denoiser, DEFAULT_OPSET)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    obs = random_low_dim(policy, 2)
    noise = policy.sample_noise(2, torch.Generator().manual_seed(1))
    (actual,) = session.run(["action"], {key: x.numpy() for key, x in obs.items()} | {"noise": noise.numpy()})
    expected = policy.predict_action(obs, torch.Generator().manual_seed(1))["action"]
    torch.testing.assert_close(torch.from_numpy(actual), expected, atol=1e-5, rtol=0)
