"""What the form of a new run shows: its data sets, what will start, what is wrong, and what is risky."""

from __future__ import annotations

from dataclasses import dataclass

from app.forms.preview import Net, Schedule
from app.forms.read import FROM_RUN, Typed
from app.forms.same_as import SameAs
from app.forms.show import Control, in_group
from app.runs.estimate import Estimate
from app.store.tables import Run
from app.words import number, whole_seconds
from trainer.datasets.catalogue import Dataset
from trainer.i18n import _, ngettext
from trainer.presets import Preset

_PREVIEW_PIXELS = 48  # the height of the image beside "permute pixels", about


@dataclass(frozen=True)
class FormError:
    """One problem: the field's title, the sentence, and the id of what to correct ("" where no one field is)."""

    title: str
    message: str
    target: str


@dataclass(frozen=True)
class FormWarning:
    """Something risky; ``fix`` is a field and its text for the button."""

    title: str
    text: str
    fix: str = ""
    fix_words: str = ""


@dataclass(frozen=True)
class Summary:
    """The card beside the form: what will start, what is wrong, what is risky."""

    count: int
    sentence: str
    estimate: Estimate
    num_ahead: int
    errors: list[FormError]
    warnings: list[FormWarning]
    needs_tick: bool
    ticked: bool
    same_as: SameAs | None

    @property
    def title(self) -> str:
        if self.errors:
            return self.errors_words
        return ngettext("This will start {n} run", "This will start {n} runs", self.count).format(n=number(self.count))

    @property
    def errors_words(self) -> str:
        count = len(self.errors)
        return ngettext("{n} error to fix", "{n} errors to fix", count).format(n=count)

    @property
    def short_words(self) -> str:
        """The title in the bar of narrow windows."""
        if self.errors:
            return self.errors_words
        return ngettext("{n} run", "{n} runs", self.count).format(n=number(self.count))

    @property
    def time_words(self) -> str:
        """How long the runs will take; empty where that is unknown."""
        if self.errors or self.estimate.seconds is None:
            return ""
        return _("about {time}").format(time=whole_seconds(self.estimate.seconds))

    @property
    def no_time_words(self) -> str:
        """Why it is unknown how long the runs will take."""
        if self.errors:
            return _("after the error is fixed")
        return _("unknown: no similar run has finished here yet")

    @property
    def time_basis(self) -> str:
        """What the time of a run is, and what it rests on."""
        epochs = self.estimate.num_epochs
        basis = ngettext(
            "based on {n} epoch of similar nets on this machine",
            "based on {n} epochs of similar nets on this machine",
            epochs,
        ).format(n=number(epochs))
        if self.count < 2:
            return basis
        return f"{_('{time} per run, one at a time;').format(time=whole_seconds(self.estimate.each))} {basis}"

    @property
    def queue_words(self) -> str:
        if not self.num_ahead:
            return _("starts at once")
        return ngettext("behind {n} run", "behind {n} runs", self.num_ahead).format(n=number(self.num_ahead))

    @property
    def start_words(self) -> str:
        """What the button says."""
        words = ngettext("Start {n} run", "Start {n} runs", self.count).format(n=number(self.count))
        return _("{start} anyway").format(start=words) if self.warnings and not self.errors else words

    @property
    def is_blocked(self) -> bool:
        """Whether the runs can't be started as the form is."""
        return bool(self.errors) and not self.needs_tick


@dataclass(frozen=True)
class DatasetChoice:
    """A data set as it is offered."""

    dataset: Dataset
    is_chosen: bool

    @property
    def tag(self) -> str:
        """Where it comes from, if not from the internet."""
        return {"imported": _("imported"), "built in": _("built in")}.get(self.dataset.kind, "")

    @property
    def thumb(self) -> str:
        """The address of its pictures; empty where there are none yet."""
        dataset = self.dataset
        if dataset.status != "ready":
            return ""
        version = f"?v={dataset.train_fingerprint[:12]}" if dataset.train_fingerprint else ""
        return f"/datasets/{dataset.name}/samples.png{version}"

    @property
    def no_thumb_words(self) -> str:
        if self.dataset.status == "absent":
            return _("will be downloaded")
        if self.dataset.status == "damaged":
            return _("damaged")
        return _("images appear after the first run")

    @property
    def facts(self) -> str:
        """``60,000 + 10,000 · 28 × 28 grey · 10 classes``: what of it is known."""
        facts = []
        if self.dataset.num_train is not None:
            facts.append(f"{number(self.dataset.num_train)} + {number(self.dataset.num_test)}")
        if self.dataset.image_shape:
            channels, height, width = self.dataset.image_shape
            facts.append(f"{height} × {width} {_('grey') if channels == 1 else 'RGB'}")
        if self.dataset.class_names:
            count = len(self.dataset.class_names)
            facts.append(ngettext("{n} class", "{n} classes", count).format(n=number(count)))
        return " · ".join(facts)


@dataclass(frozen=True)
class Preview:
    """A test image as it is, and with its pixels permuted."""

    plain: str
    permuted: str
    height: int
    width: int
    zoom: int


@dataclass(frozen=True)
class NewPage:
    """Variables of new.html."""

    typed: Typed
    loaded: str
    controls: dict[str, Control]
    presets: list[Preset]
    earlier: list[Run]
    datasets: list[Dataset]
    dataset: Dataset | None
    net: Net
    schedule: Schedule | None
    seeds: str
    summary: Summary

    @property
    def is_copy(self) -> bool:
        """Whether the form begins with the configuration of an earlier run."""
        return self.typed.preset == FROM_RUN

    @property
    def dataset_choices(self) -> list[DatasetChoice]:
        chosen = self.controls["dataset"].text.split(", ")
        return [DatasetChoice(dataset, dataset.name in chosen) for dataset in self.datasets]

    @property
    def preview(self) -> Preview | None:
        """What permuting the pixels does, where the images of the data set are here."""
        dataset, seed = self.dataset, self.controls["permutation_seed"].text
        if dataset is None or dataset.status != "ready" or not dataset.image_shape:
            return None
        _channels, height, width = dataset.image_shape
        plain = f"/images/{dataset.name}/{dataset.test_fingerprint}/test/0.png"
        permuted = f"{plain}?permutation={seed if seed.isdigit() else '0'}"
        return Preview(plain, permuted, height, width, max(round(_PREVIEW_PIXELS / height), 1))

    def help_of(self, control: Control) -> str:
        """The help of a field, with what it means for what is typed."""
        if control.name == "batch_size" and self.schedule:
            steps = number(self.schedule.steps_per_epoch)
            return _("{help} {n} steps per epoch.").format(help=control.help, n=steps)
        if control.name == "learning_rate":
            return f"{_('Enter several values for a sweep.')} {control.help}"
        if control.name == "schedule" and self.schedule:
            return f"{control.help} {_('The curve below updates as you type.')}"
        if control.name == "seed" and self.seeds:
            return self.seeds
        return control.help

    def errors_at(self, target: str) -> list[FormError]:
        """What is wrong with a field that is none of a run's configuration."""
        return [error for error in self.summary.errors if error.target == target]

    def group(self, name: str) -> list[Control]:
        return in_group(self.controls, name)

    @property
    def advanced_words(self) -> str:
        controls = self.group("advanced")
        changed = sum(not control.at_default for control in controls)
        count = ngettext("{n} field", "{n} fields", len(controls)).format(n=len(controls))
        if not changed:
            return _("{count}, all at their defaults").format(count=count)
        return _("{count}, {changed} changed").format(count=count, changed=changed)

    @property
    def advanced_open(self) -> bool:
        return any(control.problems or not control.at_default for control in self.group("advanced"))
