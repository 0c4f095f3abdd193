"""Gates with faults, each beside its mended twin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.diagnosis.twins.twin import C, Twin, large_noise, layer_twin


class ChannelGate(nn.Module):
    """Squeeze and excitation, each step a method that a fault replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(C, 6), nn.Linear(6, C)
        with torch.no_grad():
            self.excite.weight.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.excite(self.squeeze(self.pool(x)).relu()))
        return x * scale[:, :, None, None]

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def gate(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class OverBatch(ChannelGate):
    """A softmax over the images of the batch."""

    def gate(self, logits: Tensor) -> Tensor:
        return logits.softmax(0)


class OverChannels(ChannelGate):
    """A softmax over the channels."""

    def gate(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)


class Amplifying(ChannelGate):
    """A gate from 0 to 2."""

    def gate(self, logits: Tensor) -> Tensor:
        return 1 + logits.tanh()


class ZeroGate(ChannelGate):
    """A gate whose last layer is zero: ½ for everything."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)


class Closed(ChannelGate):
    """A bias far below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.excite.bias.data -= 12


class Open(ChannelGate):
    """A bias far above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.excite.bias.data += 12


class Blind(ChannelGate):
    """A gate whose input is a constant."""

    def pool(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[:, :, 0, 0])


class NotReturned(ChannelGate):
    """A gate that is computed and multiplied, and the features go on without it."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.excite(self.squeeze(self.pool(x)).relu()))
        x * scale[:, :, None, None]
        return x


class CBAM(nn.Module):
    """A channel gate, then a spatial gate."""

    def __init__(self, no_spatial: bool = False) -> None:
        super().__init__()
        self.no_spatial = no_spatial
        self.channel = ChannelGate()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel(x)
        if self.no_spatial:
            return x
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * self.conv(pooled).sigmoid()


class HalfCBAM(CBAM):
    """The spatial gate is off by default."""

    def __init__(self, no_spatial: bool = True) -> None:
        super().__init__(no_spatial)


class TwoSigmoids(ChannelGate):
    """A sigmoid of a sigmoid."""

    def gate(self, logits: Tensor) -> Tensor:
        return logits.sigmoid().sigmoid()


class Inverted(ChannelGate):
    """One minus the gate."""

    def gate(self, logits: Tensor) -> Tensor:
        return 1 - logits.sigmoid()


class NoSigmoid(ChannelGate):
    """The logits in the place of the gate."""

    def gate(self, logits: Tensor) -> Tensor:
        return logits


class SpatialGate(nn.Module):
    """A gate over places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.placed(self.conv(x).sigmoid())

    def placed(self, gate: Tensor) -> Tensor:
        return gate


class Transposed(SpatialGate):
    """Rows and columns of the gate are swapped."""

    def placed(self, gate: Tensor) -> Tensor:
        return gate.transpose(2, 3)


class GateBranch(nn.Module):
    """A gate over places, as a module of its own that returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).sigmoid()


class RolledBranch(GateBranch):
    """Windows were rolled and not rolled back; the gate wraps around the edges."""

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x).sigmoid()
        return gate.roll((gate.shape[2] // 3, gate.shape[3] // 3), (2, 3))


class BranchGate(nn.Module):
    """Features times the gate of a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = self.branch()

    def branch(self) -> GateBranch:
        return GateBranch()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class RolledGate(BranchGate):
    """The branch returns the gate rolled."""

    def branch(self) -> GateBranch:
        return RolledBranch()


class OnEveryOther(SpatialGate):
    """The gate is written into a new tensor, place by place."""

    def placed(self, gate: Tensor) -> Tensor:
        out = torch.zeros_like(gate)
        out.view(-1).index_put_((torch.arange(gate.numel()),), gate.reshape(-1))
        return out


class WindowsReordered(SpatialGate):
    """Strips of rows are put together in another order than they were cut."""

    def placed(self, gate: Tensor) -> Tensor:
        strips = gate.unflatten(2, (4, -1))
        return strips.transpose(2, 3).flatten(2, 3)


class OverRows(ChannelGate):
    """One value per channel multiplies the rows: there are as many."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.excite(self.squeeze(self.pool(x)).relu()))
        return x * scale[:, None, :, None]


class RowsAndColumns(nn.Module):
    """A gate over rows times a gate over columns, each pooled over the other axis."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Conv1d(C, C, 1), nn.Conv1d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x.mean(3)).sigmoid()
        columns = self.columns(x.mean(2)).sigmoid()
        return x * rows[:, :, :, None] * columns[:, :, None, :]


class ColumnsAndRows(RowsAndColumns):
    """The gate over rows multiplies columns, and reversed."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x.mean(3)).sigmoid()
        columns = self.columns(x.mean(2)).sigmoid()
        return x * rows[:, :, None, :] * columns[:, :, :, None]


class SoftmaxOfOne(SpatialGate):
    """A softmax over the single channel of the gate."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.placed(self.conv(x).softmax(1))


class GatedBranch(nn.Module):
    """A residual branch with a channel gate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.gate = nn.Conv2d(C, C, 3, padding=1), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x + y * self.scale(y)

    def scale(self, y: Tensor) -> Tensor:
        return self.gate(y.mean((2, 3))).sigmoid()[:, :, None, None]


class GatedShortcut(GatedBranch):
    """The gate of the branch multiplies the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x * self.scale(y) + y


class AddedProduct(ChannelGate):
    """The same product, written as a sum: x − x (1 − gate)."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.excite(self.squeeze(self.pool(x)).relu()))
        return torch.addcmul(x, x, 1 - scale[:, :, None, None], value=-1)


class InvertedSum(ChannelGate):
    """x − x · gate."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.excite(self.squeeze(self.pool(x)).relu()))
        return torch.addcmul(x, x, scale[:, :, None, None], value=-1)


class OfOtherImages(ChannelGate):
    """The gate of the next image of the batch."""

    def gate(self, logits: Tensor) -> Tensor:
        return logits.sigmoid().roll(1, 0)


class InTraining(ChannelGate):
    """The gate is left out in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return super().forward(x)


class EinsumWithoutSigmoid(ChannelGate):
    """The logits as factors, by einsum."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.excite(self.squeeze(self.pool(x)).relu())
        return torch.einsum("bchw,bc->bchw", x, scale)


GATES: dict[str, Twin] = {
    "softmax over the batch as gate": layer_twin(
        "gate-over-batch", "error", OverBatch, ChannelGate, "gate"
    ),
    "softmax as channel gate": layer_twin(
        "softmax-gate", "warning", OverChannels, ChannelGate, "gate"
    ),
    "gate above 1": layer_twin("unbounded-gate", "note", Amplifying, ChannelGate, "gate"),
    "gate of zeros": layer_twin(
        "gate-constant", "warning", ZeroGate, ChannelGate, "__init__", trained=True
    ),
    "gate closed": layer_twin(
        "gate-closed", "warning", Closed, ChannelGate, "__init__", trained=True
    ),
    "gate open": layer_twin("gate-open", "warning", Open, ChannelGate, "__init__", trained=True),
    "gate without input": layer_twin(
        "gate-blind", "warning", Blind, ChannelGate, "pool", trained=True
    ),
    "gate not returned": layer_twin("not-applied", "error", NotReturned, ChannelGate),
    "sigmoid twice": layer_twin("double-sigmoid", "error", TwoSigmoids, ChannelGate, "gate"),
    "gate inverted": layer_twin("gate-inverted", "warning", Inverted, ChannelGate, "gate"),
    "no sigmoid": layer_twin("missing-sigmoid", "warning", NoSigmoid, ChannelGate, "gate"),
    "gate transposed": layer_twin("gate-misplaced", "error", Transposed, SpatialGate, "placed"),
    "gate rolled": layer_twin("gate-misplaced", "error", RolledGate, BranchGate, "branch"),
    "gate written into a tensor": layer_twin(
        "not-followed", "note", OnEveryOther, SpatialGate, "placed"
    ),
    "windows of the gate reordered": layer_twin(
        "gate-scrambled", "note", WindowsReordered, SpatialGate, "placed", images=large_noise
    ),
    "channel gate on rows": layer_twin(
        "gate-swapped-axes", "warning", OverRows, ChannelGate, images=large_noise
    ),
    "gates of rows and columns swapped": layer_twin(
        "gate-swapped-axes", "warning", ColumnsAndRows, RowsAndColumns, images=large_noise
    ),
    "softmax over one channel": layer_twin("softmax-of-one", "error", SoftmaxOfOne, SpatialGate),
    "gate of the branch on the shortcut": layer_twin(
        "gate-of-other-features", "note", GatedShortcut, GatedBranch
    ),
    "gate inverted by a sum": layer_twin("gate-inverted", "warning", InvertedSum, AddedProduct),
    "gate of another image": layer_twin("batch-leak", "error", OfOtherImages, ChannelGate, "gate"),
    "gate in training only": layer_twin("skipped-in-eval", "warning", InTraining, ChannelGate),
    "no sigmoid, by einsum": layer_twin(
        "missing-sigmoid", "warning", EinsumWithoutSigmoid, ChannelGate
    ),
    "spatial half off": layer_twin("nothing-spatial", "warning", HalfCBAM, CBAM, "__init__"),
}
