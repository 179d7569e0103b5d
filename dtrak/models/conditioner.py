"""Conditioners: labels or prompts to the network's conditioning."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dtrak.utils.errors import DtrakError

PROMPTS_KEPT = 1024
Told = Shaped[Tensor, "n *shape"]


class Conditioner(ABC):
    """Maps names (class labels or prompts) to conditioning.

    Attributes:
        takes_text: whether names are free text.
        names: labels, or suggested prompts, to choose from.
    """

    takes_text: bool
    names: list[str]

    def to(self, device: torch.device | str) -> None:
        """Move to a device."""

    @abstractmethod
    def condition(self, names: Sequence[str | None]) -> Told | None:
        """The conditioning for each name (None for unconditional); None for a network without conditioning.

        Raises:
            DtrakError: a name is not known.
        """

    @abstractmethod
    def free_condition(self, count: int, negative: str = "") -> Told | None:
        """The unconditional or negative conditioning for classifier-free guidance; None if the model has none."""

    def keep_in(self, folder: Path) -> None:
        """Where :meth:`prepare` may keep conditioning."""

    def prepare(self, names: Sequence[str | None]) -> None:
        """Compute the conditioning of many names at once, before anything else needs the device's memory."""

    @abstractmethod
    def told(self, condition: Tensor | None) -> dict[str, Tensor | None]:
        """The network's keyword arguments for a conditioning."""

    @abstractmethod
    def check_name(self, name: str | None) -> None:
        """Check that the model knows a name.

        Raises:
            DtrakError: it does not; the hint lists the known ones.
        """


class ClassConditioner(Conditioner):
    """Class conditioning, or none for a network without classes.

    Args:
        count: number of the network's class embeddings; None or 0 for none.
        classes: label → class index.
        null_class: index of the unconditional class, if any.
    """

    takes_text = False

    def __init__(self, count: int | None, classes: dict[str, int] | None = None, null_class: int | None = None):
        self.count = count or 0
        self.classes = dict(classes or {}) if count else {}
        self.null_class = null_class if count else None
        self._device: torch.device | str = "cpu"

    @property
    def names(self) -> list[str]:  # type: ignore[override]
        """Its labels."""
        return list(self.classes)

    def to(self, device: torch.device | str) -> None:
        """See :class:`Conditioner`."""
        self._device = device

    def class_index(self, label: str | None) -> int | None:
        """The class index for ``label``, or the null class if it is None or unknown; None without classes.

        Raises:
            DtrakError: ``label`` has no class and there is no null class.
        """
        if not self.count:
            return None
        index = self.null_class if label is None else self.classes.get(label, self.null_class)
        if index is None:
            raise DtrakError(
                f"The model has no class for the label {label!r}.",
                hint=f"Classes: {', '.join(self.classes) or 'none'}. Map labels with model.classes in the YAML file.",
            )
        return index

    def condition(self, names: Sequence[str | None]) -> Told | None:
        """See :class:`Conditioner`."""
        indices = [self.class_index(name) for name in names]
        return torch.tensor(indices, device=self._device) if self.count else None

    def free_condition(self, count: int, negative: str = "") -> Told | None:
        """See :class:`Conditioner`."""
        return None if self.null_class is None else self.condition([None] * count)

    def told(self, condition: Tensor | None) -> dict[str, Tensor | None]:
        """See :class:`Conditioner`."""
        return {"class_labels": condition}

    def check_name(self, name: str | None) -> None:
        """See :class:`Conditioner`."""
        if name is not None and name not in self.classes:
            known = ", ".join(self.classes) or "none; this model has no classes"
            raise DtrakError(f"The model has no class '{name}'.", hint=f"Classes: {known}.")

    def learn(self, labels: Sequence[str]) -> None:
        """Assign the network's unused class embeddings to new labels, and drop labels not in ``labels``.

        Raises:
            DtrakError: there are too few unused classes.
        """
        if not self.count:
            return
        taken = set(self.classes.values()) | {self.null_class}
        free = [i for i in range(self.count) if i not in taken]
        new = [label for label in labels if label not in self.classes]
        if len(new) > len(free):
            raise DtrakError(f"The base model has {len(free)} unused classes, but the data have {len(new)} new labels.")
        self.classes = {label: self.classes.get(label, -1) for label in labels} | dict(zip(new, free, strict=False))


class PromptConditioner(Conditioner):
    """Conditioning on the last hidden states of a frozen CLIP text encoder.

    Args:
        dtype: type of the conditioning.
        prompts: suggested prompts.
    """

    takes_text = True

    def __init__(self, text_encoder: Any, tokenizer: Any, dtype: torch.dtype, prompts: Sequence[str] = ()):
        self.text_encoder, self.tokenizer, self.dtype = text_encoder.eval(), tokenizer, dtype
        self.names = list(prompts)
        self._embedding = functools.lru_cache(PROMPTS_KEPT)(self._embed)

    def to(self, device: torch.device | str) -> None:
        """See :class:`Conditioner`."""
        self.text_encoder.to(device)
        self._embedding.cache_clear()

    def condition(self, names: Sequence[str | None]) -> Float[Tensor, "n tokens d"]:
        """See :class:`Conditioner`; None is the empty prompt."""
        return torch.stack([self._embedding(name or "") for name in names])

    def free_condition(self, count: int, negative: str = "") -> Float[Tensor, "n tokens d"]:
        """See :class:`Conditioner`."""
        return self.condition([negative] * count)

    def told(self, condition: Tensor | None) -> dict[str, Tensor | None]:
        """See :class:`Conditioner`."""
        return {"encoder_hidden_states": condition}

    def check_name(self, name: str | None) -> None:
        """See :class:`Conditioner`; any text is a valid prompt."""

    @torch.no_grad()
    def _embed(self, prompt: str) -> Float[Tensor, "tokens d"]:
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0][0].to(self.dtype)
