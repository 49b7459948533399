"""Modules by name, whatever the name (:class:`ByName`)."""

from collections.abc import ItemsView, Iterator, KeysView

from torch import nn

_PREFIX = "of_"


class ByName(nn.ModuleDict):
    """A ``ModuleDict`` whose keys may be those of its attributes: ``values``, ``type``.

    A submodule's own name, as in a state dict, is the key with ``of_`` before it.
    """

    def __getitem__(self, key: str) -> nn.Module:
        """Return the module of a name."""
        return super().__getitem__(_PREFIX + key)

    def __setitem__(self, key: str, module: nn.Module) -> None:
        """Set the module of a name."""
        super().__setitem__(_PREFIX + key, module)

    def __contains__(self, key: str) -> bool:
        """Whether there is a module of a name."""
        return super().__contains__(_PREFIX + key)

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        return iter(self.keys())

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return self._by_name().keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """Return names and modules."""
        return self._by_name().items()

    def _by_name(self) -> dict[str, nn.Module]:
        return {key.removeprefix(_PREFIX): m for key, m in self._modules.items() if m is not None}
