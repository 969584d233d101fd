"""The base of cells that call the cells in them in their own way, as MindSpore's mixed precision O1 wants it."""

from __future__ import annotations

from mindspore import nn


class Container(nn.SequentialCell):
    """A cell that says in `construct` how it calls its cells: in any order, by any name.

    It is a SequentialCell because MindSpore's automatic mixed precision O1 knows no other way into such a cell. O1
    writes the source of a cell's own class anew, and finds there only the cells that are called by their names. In a
    SequentialCell it puts new cells in the place of those in it, one by one, and leaves the class as it is.
    """

    def __setitem__(self, index, cell):
        """Put a cell in the place of another one. Its parameters keep their names; MindSpore's would guess at them."""
        self._cells[list(self._cells)[index]] = cell
        self.cell_list = list(self._cells.values())
