"""Recorded models for the installed robosuite: those of robosuite 1.2 to 1.4 in the names of 1.5, and files checked.

Only what the environment looks up is changed, and where meshes and textures are. Masses, geoms, joints, friction and
actuators stay as they were recorded: the collectors of robosuite load the very XML that they write.

Models that use meshes which 1.5 no longer has (of 1.0, and of some robots up to 1.3) are refused.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from ddp_cli.sim.environment import import_robosuite

RENAMED_PREFIXES = (
    # 1.5 names grippers after their arm, also that of a single arm. Robots with two arms have always had these names.
    (re.compile(r"^gripper(\d+)_"), r"gripper\1_right_"),
    # 1.5 has mounts that move, too.
    (re.compile(r"^mount(\d+)_"), r"fixed_mount\1_"),
)
COLLISION_FLAGS = {"nativeccd": "disable", "multiccd": "disable"}
"""MuJoCo up to 3.2, for which robosuite 1.4 was made, found the contacts of meshes in another way, and fewer of them.
Fingers that touch each other rest elsewhere with today's: those of the UR5e 9 mm wider.
"""

INERT_GEOM = {"type": "sphere", "size": "0.001", "contype": "0", "conaffinity": "0", "mass": "0", "rgba": "0 0 0 0"}


def local_model(env: Any, xml: str) -> str:
    """The recorded model `xml` as the robosuite environment `env` can load it: names, and paths of assets.

    ValueError, KeyError, AttributeError or SyntaxError (of the XML) if it cannot be loaded.
    """
    root = ET.fromstring(xml)  # noqa: S314 - expat limits entities, and reads no external ones
    if _is_before_1_5(root):
        _translate(root, env.model.root)
        xml = ET.tostring(root, encoding="unicode")
    xml = env.edit_model_xml(xml)
    _check_files(ET.fromstring(xml))  # noqa: S314
    return xml


def _is_before_1_5(root: Element) -> bool:
    """By content: recordings do not always name the version that made their model."""
    return any(re.fullmatch(r"gripper\d+_grip_site", site.get("name", "")) for site in root.iter("site"))


def _translate(root: Element, current: Element) -> None:
    """Changes the model `root` in place; `current` is the one that the environment made itself."""
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _translate_value(key, value))
    _add_missing(root, current)
    _allow_thin_meshes(root)
    option = root.find("option")
    option = ET.SubElement(root, "option") if option is None else option
    flag = option.find("flag")
    flag = ET.SubElement(option, "flag") if flag is None else flag
    flag.attrib.update(COLLISION_FLAGS)


def _translate_value(attribute: str, value: str) -> str:
    """The value of an attribute: a path, a name, or a reference to one, such as the joint of an actuator."""
    if attribute.startswith("file"):
        return value.replace("/assets/mounts/", "/assets/bases/")
    for prefix, replacement in RENAMED_PREFIXES:
        value = prefix.sub(replacement, value)
    return value


def _add_missing(root: Element, current: Element) -> None:
    """Adds what the environment looks up in `current` and older models lack: the sites in whose frames the controllers
    work, and geoms of the robot, as points that touch nothing and weigh nothing (the Panda of 1.4.0 lacks one).
    """
    parents = {child: parent for parent in current.iter() for child in parent}
    bodies = {body.get("name"): body for body in root.iter("body")}
    names = {(element.tag, element.get("name")) for element in root.iter()}
    for element in current.iter():
        name = element.get("name", "")
        if (element.tag, name) in names:
            continue
        if element.tag == "site" and re.fullmatch(r"robot\d+_\w+_center", name):
            _find_body(parents[element], parents, bodies).append(copy.copy(element))
        elif element.tag == "geom" and re.match(r"robot\d+_", name):
            geom = ET.SubElement(_find_body(parents[element], parents, bodies), "geom", INERT_GEOM)
            geom.attrib.update(name=name, group=element.get("group", "0"))


def _find_body(body: Element, parents: dict[Element, Element], bodies: dict[str | None, Element]) -> Element:
    """The body of the recorded model that is where `body` is in the current one: of the same name, or of a parent of
    which `body`, new in 1.5, is in place. ValueError if there is none.
    """
    name = body.get("name")
    while body.get("name") not in bodies:
        position = [float(value) for value in body.get("pos", "0 0 0").split()]
        if any(position) or not set(body.keys()) <= {"name", "pos"} or body.find("joint") is not None:
            raise ValueError(f"it has no body {name}")
        body = parents[body]
    return bodies[body.get("name")]


def _allow_thin_meshes(root: Element) -> None:
    """Today's MuJoCo refuses meshes of almost no volume, even where their mass does not matter: in geoms that touch
    nothing, of bodies whose inertia is given.
    """
    matters = set()
    for body in root.iter("body"):
        for geom in body.findall("geom"):
            touches_nothing = geom.get("contype") == geom.get("conaffinity") == "0"
            if body.find("inertial") is None or not touches_nothing:
                matters.add(geom.get("mesh"))
    for mesh in root.iter("mesh"):
        if mesh.get("name") not in matters:
            mesh.set("inertia", "shell")


def _check_files(root: Element) -> None:
    """ValueError if the model reads a file that is not one of robosuite's assets: recordings are other people's."""
    assets = Path(import_robosuite().__file__).parent / "models" / "assets"
    for element in root.iter():
        if element.get("strippath") is not None:
            raise ValueError("strippath is not supported")
        for key, value in element.attrib.items():
            if not key.startswith("file"):  # also fileright, fileup, ... of the sides of a cube
                continue
            path = Path(os.path.normpath(value))  # not resolved: package managers link to files elsewhere
            if not path.is_relative_to(assets):
                raise ValueError(f"the file '{value}' is not one of robosuite's assets")
            if not path.is_file():
                raise ValueError(f"this robosuite has no {path.relative_to(assets)}")
