"""Recorded models of older versions load with the physics they were recorded with, and read no other files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from ddp_cli.errors import SimulatorError
from ddp_cli.sim.model_translation import COLLISION_FLAGS
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task, with_robot

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["Panda", "UR5e"])
def sim(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    sim = Simulator(with_robot(get_task("lift"), request.param))
    sim.reset(3)
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def model_xml(sim: Simulator) -> str:
    return sim.model_xml()


def as_of_1_4(xml: str) -> str:
    """`xml`, a model of robosuite 1.5, as robosuite 1.4 wrote it on somebody's computer."""
    root = ET.fromstring(xml)
    world = root.find("worldbody")
    assert world is not None
    for target in [body for body in world.findall("body") if body.get("name", "").endswith("_eef_target")]:
        world.remove(target)
    parents = {child: parent for parent in root.iter() for child in parent}
    elements = {element.get("name"): element for element in root.iter()}
    for name in {"robot0_right_center", "robot0_link7_collision"} & elements.keys():  # the latter as in 1.4.0
        parents[elements[name]].remove(elements[name])
    if "robot0_fixed_base_link" in elements:
        base = elements["robot0_fixed_base_link"]
        parents[base].remove(base)
        parents[base].extend(list(base))
    for element in root.iter():
        for key, value in element.attrib.items():
            name = re.sub("^fixed_mount0_", "mount0_", re.sub("^gripper0_right_", "gripper0_", value))
            element.set(key, name.replace("robosuite/models/assets/bases/", "/home/me/robosuite/models/assets/mounts/"))
    return ET.tostring(root, encoding="unicode")


def final_state(sim: Simulator, xml: str) -> np.ndarray:
    sim.load_xml(xml)
    rng = np.random.default_rng(0)
    for action in rng.uniform(-1, 1, (12, 7)):
        sim.step(action)
    return sim.state()


def test_a_model_of_1_4_has_the_states_of_the_same_model_of_1_5(sim: Simulator, model_xml: str) -> None:
    old_xml = as_of_1_4(model_xml)
    assert "gripper0_grip_site" in old_xml
    assert "right_center" not in old_xml
    flag = " ".join(f'{key}="{value}"' for key, value in COLLISION_FLAGS.items())
    new_xml = model_xml.replace("<asset>", f"<option><flag {flag}/></option><asset>", 1)
    # The UR5e of 1.4 has a body less, so contacts are in another order, and sums are rounded in another way.
    tolerance = 0 if sim.task.robosuite.robots == ("Panda",) else 1e-9
    np.testing.assert_allclose(final_state(sim, old_xml), final_state(sim, new_xml), rtol=0, atol=tolerance)
    assert sim.low_dim()["robot0_eef_pos"].any()
    assert sim.gripper_opening()[0] > 0


def test_models_of_today_are_loaded_as_they_are(sim: Simulator, model_xml: str) -> None:
    sim.load_xml(model_xml)
    assert sim.model.opt.disableflags == 0
    sim.load_xml(as_of_1_4(model_xml))
    assert sim.model.opt.disableflags != 0


def test_meshes_of_almost_no_volume_are_taken_where_their_mass_does_not_matter(sim: Simulator, model_xml: str) -> None:
    """As visual meshes of the Sawyer of 1.4 are. MuJoCo writes models without `inertiagrouprange`."""
    tiny = '<mesh name="tiny" vertex="0 0 0 1e-5 0 0 0 1e-5 0 0 0 1e-5" /></asset>'
    xml = as_of_1_4(model_xml).replace('inertiagrouprange="0 0"', "").replace("</asset>", tiny)
    body = '<body name="mount0_pedestal" pos="0 0 0">'  # has an inertia of its own
    assert body in xml
    geom = '<geom type="mesh" mesh="tiny" contype="0" conaffinity="0" />'
    sim.load_xml(xml.replace(body, body + geom))
    table = '<body name="table" pos="0.0 0.0 0.775">'  # has none
    assert table in xml
    with pytest.raises(SimulatorError, match="volume is too small"):
        sim.load_xml(xml.replace(table, table + geom))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("/assets/mounts/", "/assets/gone/", "this robosuite has no gone/meshes/rethink_mount/pedestal.stl"),
        ("robosuite/models/assets/textures/", "/etc/", "'/etc/red-wood.png' is not one of robosuite's assets"),
        (
            "robosuite/models/assets/textures/",
            "robosuite/models/assets/../../../",
            "is not one of robosuite's assets",
        ),
        ("robosuite/models/assets/textures/", "", "'red-wood.png' is not one of robosuite's assets"),
        ("<worldbody>", '<include file="/etc/fstab" /><worldbody>', "'/etc/fstab' is not one of robosuite's assets"),
        ("<worldbody>", '<worldbody><body><include file="part.xml" /></body>', "'part.xml' is not one of"),
        ("<asset>", '<asset><hfield name="h" file="/etc/h.png" size="1 1 1 1" />', "'/etc/h.png' is not one of"),
        ("<asset>", '<asset><texture type="cube" fileup="/etc/u.png" />', "'/etc/u.png' is not one of"),
        ("<compiler ", '<compiler strippath="true" ', "strippath is not supported"),
        ("robot0_", "arm_", "it has no body robot0_"),
        ("gripper0_finger", "gripper0_thumb", r"No .\w+. with name gripper0_right_finger\w+ exists\.$"),
    ],
)
def test_what_cannot_be_loaded_is_refused(sim: Simulator, model_xml: str, old: str, new: str, reason: str) -> None:
    old_xml = as_of_1_4(model_xml)
    assert old in old_xml
    with pytest.raises(SimulatorError, match=f"the recorded model cannot be loaded: .*{reason}"):
        sim.load_xml(old_xml.replace(old, new))
    sim.load_xml(model_xml)


def test_files_of_models_of_today_are_checked_as_well(sim: Simulator, model_xml: str) -> None:
    with pytest.raises(SimulatorError, match="not one of robosuite's assets"):
        sim.load_xml(model_xml.replace("robosuite/models/assets/textures/", "/etc/"))
