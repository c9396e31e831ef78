"""What `engine.explain` looks at: a run's folder and its data, read as far as they are there, and never written to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.transforms import eval_transform
from ddetr_lite.engine.checkpoint import LoadedModel, load_model
from ddetr_lite.engine.data import Part, parts
from ddetr_lite.engine.distributed import pick_device
from ddetr_lite.engine.errors import detections_from_results
from ddetr_lite.engine.evaluate import detect
from ddetr_lite.engine.recipes import Recipe, read_recipe, recipe, recipe_from_dict, recipe_names
from ddetr_lite.engine.run_results import RunResults, read_run
from ddetr_lite.models.presets import Model
from ddetr_lite.set_prediction.postprocess import Detections

Verdict = Literal["OK", "suspicious", "cause", "skipped"]

JUDGED = 8  # pictures of detections.json to judge, for each picture that the model itself is run on


@dataclass(frozen=True)
class Observation:
    """What one check says. A cause explains a low AP by itself; what is suspicious may be its symptom.

    text: the measured numbers; remedy: what to do, in one line, where something is wrong.
    """

    name: str
    verdict: Verdict
    text: str
    remedy: str = ""


@dataclass
class Evidence:
    """A run, as far as it can be read. What is None is not there, or `problems` says why it cannot be used."""

    run: RunResults
    pictures: int
    """How many pictures of each split the model is run on."""
    steps: int
    """How many steps it learns one batch."""
    device: torch.device
    recipe: Recipe | None = None
    best: LoadedModel | None = None
    last: LoadedModel | None = None
    folder: Path | None = None
    """Of the data."""
    training: CocoDetection | None = None
    """The first `pictures` of the training set, as they are."""
    validation: CocoDetection | None = None
    judged: CocoDetection | None = None
    """The pictures that `found` is about."""
    found: dict[int, Detections] = field(default_factory=dict)
    source: str = ""
    """Where `found` comes from."""
    young: bool = False
    """So few steps that even a healthy run would have little to show."""
    problems: list[Observation] = field(default_factory=list)

    @property
    def loaded(self) -> LoadedModel | None:
        """The model to look at: the one with the best AP, or that of the last step."""
        return self.best or self.last

    @property
    def model(self) -> Model | None:
        """Its network."""
        return self.loaded.model if self.loaded else None

    @property
    def usual(self) -> Recipe | None:
        """The named recipe that the run is a variant of, with the same row of the table; None for an unknown name."""
        if self.recipe is None or self.recipe.name not in recipe_names():
            return None
        try:
            return recipe(self.recipe.name, self.run.row)
        except ValueError:
            return None

    @property
    def pictures_seen(self) -> int:
        """Over all steps, each picture as often as it came."""
        return self.run.steps * self.recipe.train.batch if self.recipe else 0

    @property
    def ap(self) -> float | None:
        """The latest AP; None before the first evaluation."""
        return float(self.run.last["AP"]) if self.run.last else None


def gather(run: str | Path, folder: str | Path | None, pictures: int, steps: int, device: str) -> Evidence:
    """Read a run's folder and its data.

    folder: of the data, None: the one that the recipe names. Raises ValueError where there is no run.
    """
    evidence = Evidence(read_run(run), pictures, steps, pick_device(device))
    _read_recipe(evidence)
    for name in ("best", "last"):
        path = evidence.run.folder / f"{name}.pt"
        if path.exists():
            try:
                setattr(evidence, name, load_model(path))
            except (ValueError, RuntimeError) as error:
                _problem(evidence, "checkpoint", "cause", str(error), "start anew, or with --start-from another one")
    if evidence.recipe is not None:
        evidence.folder = Path(folder or evidence.recipe.data.folder).expanduser()
        if evidence.folder.is_dir():
            _read_data(evidence, evidence.recipe, evidence.folder)
        else:
            text = f"{evidence.folder} does not exist here: nothing that needs pictures or their objects is looked at"
            _problem(evidence, "data folder", "skipped", text, "name it with --folder")
    return evidence


def _problem(evidence: Evidence, name: str, verdict: Verdict, text: str, remedy: str = "") -> None:
    evidence.problems.append(Observation(name, verdict, text, remedy))


def _read_recipe(evidence: Evidence) -> None:
    """From recipe.json, or where that is missing from the log's first line."""
    path, logged = evidence.run.folder / "recipe.json", evidence.run.start.get("recipe")
    try:
        if path.exists():
            evidence.recipe = read_recipe(path)
        elif logged is not None:
            evidence.recipe = recipe_from_dict(logged)
        if evidence.recipe is not None:
            return
        problem = "neither recipe.json nor the log names a recipe"
    except ValueError as error:
        problem = str(error) if path.exists() else f"the log's first line: {error}"
    _problem(evidence, "recipe", "skipped", f"only the log is looked at: {problem}")


def _read_data(evidence: Evidence, chosen: Recipe, folder: Path) -> None:
    loaded = evidence.loaded
    classes = loaded.classes if loaded else evidence.run.start.get("classes")
    as_it_is = eval_transform(chosen.augment)

    def read(part: Part, most: int) -> CocoDetection | None:
        try:
            return part.of(
                CocoDetection(CocoFolder.find(folder, part.split), as_it_is, classes, limit=part.limit)
            ).first(most)
        except (ValueError, OSError) as error:
            # What is wrong with the files themselves is named by `datasets.check`; here: what does not fit the run.
            remedy = "give the data that the model was trained on (--folder), or correct the file"
            _problem(evidence, "data and model", "cause", str(error), remedy)
            return None

    trained, evaluated = parts(vars(chosen.data))
    evidence.training = read(trained, evidence.pictures)
    evidence.judged = read(evaluated, JUDGED * evidence.pictures)
    if evidence.judged is not None:
        evidence.validation = evidence.judged.first(evidence.pictures)


def find_objects(evidence: Evidence) -> None:
    """Fill `found`: what the run's last evaluation found, or else what the model finds now in a few pictures."""
    kept = evidence.run.detections()
    if evidence.validation is None or evidence.judged is None:
        return
    if kept is not None:
        ids = {image["id"] for image in evidence.judged.images}
        try:
            own = [result for result in kept["detections"] if result["image_id"] in ids]
            evidence.found = detections_from_results(own, evidence.judged)
        except (ValueError, KeyError, TypeError) as error:
            _problem(evidence, "detections", "cause", f"detections.json: {error}", "evaluate with the run's own data")
            return
        if kept["detections"] and not own:
            text = f"detections.json has {len(kept['detections'])} detections, none in the first {len(ids)} pictures"
            _problem(evidence, "detections", "suspicious", text, "evaluate with the run's own data (--folder)")
        evidence.source = "detections.json"
    elif evidence.model is not None:
        evidence.judged = evidence.validation
        evidence.found = dict(detect(evidence.model.to(evidence.device), evidence.validation, batch=8))
        evidence.source = "the model now"
