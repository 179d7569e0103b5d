"""Conditioners: what the network is told, a class or a prompt."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dtrak.utils.errors import DtrakError

PROMPTS_KEPT = 1024
Told = Shaped[Tensor, "n *shape"]


class Conditioner(ABC):
    """Names to what the network is given beside its input.

    Attributes:
        takes_text: whether any text is a name.
        names: that a person may choose from.
    """

    takes_text: bool
    names: list[str]

    def to(self, device: torch.device | str) -> None:
        """Compute on this device."""

    @abstractmethod
    def condition(self, names: Sequence[str | None]) -> Told | None:
        """What the network is told for each name; None for a network that is told nothing."""

    @abstractmethod
    def free_condition(self, count: int, negative: str = "") -> Told | None:
        """What guidance leads away from, or None for a network that cannot be told "anything"."""

    @abstractmethod
    def told(self, condition: Tensor | None) -> dict[str, Tensor | None]:
        """The keyword arguments that carry a condition to the network."""

    @abstractmethod
    def check_name(self, name: str | None) -> None:
        """Refuse a name that the model does not know.

        Raises:
            DtrakError: it says which there are.
        """


class ClassConditioner(Conditioner):
    """Class indices, or nothing for a network without classes.

    Args:
        count: of the network's class embeddings; None or 0 for none.
        classes: label → class index.
        null_class: the index that stands for "any class", where there is one.
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
        """The class to condition on for ``label``; None for a network without classes.

        Raises:
            DtrakError: there are classes, none is "any", and ``label`` is not among them.
        """
        if not self.count:
            return None
        index = self.null_class if label is None else self.classes.get(label, self.null_class)
        if index is None:
            raise DtrakError(
                f"The model has no class for the label {label!r}.",
                hint=f"It knows: {', '.join(self.classes) or 'none'}. Map labels under model.classes in the YAML file.",
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
        """Give new labels the network's free classes, and forget those that are not among ``labels``.

        Raises:
            DtrakError: there are too few free classes.
        """
        if not self.count:
            return
        taken = set(self.classes.values()) | {self.null_class}
        free = [i for i in range(self.count) if i not in taken]
        new = [label for label in labels if label not in self.classes]
        if len(new) > len(free):
            raise DtrakError(f"The base has {len(free)} free classes; the data has {len(new)} new labels.")
        self.classes = {label: self.classes.get(label, -1) for label in labels} | dict(zip(new, free, strict=False))


class PromptConditioner(Conditioner):
    """The last hidden states of a CLIP text encoder, never trained.

    Args:
        prompts: to choose from where nobody writes one.
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
        """Any text can be a prompt."""

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
