"""Every fault by its code: what it means and what to do.

The words of a finding are here and nowhere else. A meaning is a format string over the finding's
own evidence, so that no sentence can claim a number that was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnviz.diagnosis.findings import Finding, Severity
from attnviz.errors import unknown_name

PAGES = "docs/doctor"


@dataclass(frozen=True)
class Fault:
    """One kind of finding.

    Attributes:
        code: Its name.
        severity: How bad it is unless a rule says otherwise.
        meaning: A sentence with the evidence in braces.
        remedy: What to do.
    """

    code: str
    severity: Severity
    meaning: str
    remedy: str

    @property
    def page(self) -> str:
        """Where it is explained."""
        return f"{PAGES}/{self.code}.md"


def finding(
    code: str, where: str, severity: Severity | None = None, *, word: str = "", **evidence: float
) -> Finding:
    """A finding of a known kind.

    Args:
        code: One of `FAULTS`.
        where: The module's dotted name.
        severity: If it is not the usual one.
        word: What the meaning's `{word}` stands for.
        evidence: The numbers that the meaning speaks of, and any others.

    Raises:
        InputError: There is no such code.
    """
    if code not in FAULTS:
        raise unknown_name("finding", code, FAULTS)
    fault = FAULTS[code]
    meaning = fault.meaning.format(word=word, **evidence)
    return Finding(
        code, severity or fault.severity, where, evidence, meaning, fault.remedy, fault.page
    )


_TOKENS = (
    # which tokens attend to which
    Fault(
        "scrambled-tokens",
        "error",
        "changing one place of the image moves keys all over the grid, only {share:.0%} of the "
        "change is where the features changed: tokens mix places and channels, and no weight "
        "belongs to a place",
        "transpose, do not reshape: tokens = x.flatten(2).transpose(1, 2); heads = "
        "t.view(b, n, heads, d).transpose(1, 2)",
    ),
    Fault(
        "scrambled-output",
        "error",
        "with every place attending to itself, changing one place of the image changes the output "
        "elsewhere, only {share:.0%} of it is where the features changed: tokens are put back in "
        "another order than they were taken",
        "go back the way you came: out.transpose(1, 2).reshape(b, c, h, w), heads first with "
        "out.transpose(1, 2).flatten(2)",
    ),
    Fault(
        "channel-attention",
        "warning",
        "channels attend to channels: {keys} keys whatever the image's size, and the scores sum "
        "over places, so that no weight points at a place",
        "for attention over places make each place a token, x.flatten(2).transpose(1, 2), so that "
        "q @ k.transpose(-2, -1) is (places, places); if channels are meant, draw no map of it",
    ),
    Fault(
        "swapped-axes",
        "error",
        "tokens and channels are swapped before a linear layer: it mixes {places} places, each of "
        "the {keys} tokens is a channel, and the model works at one image size only",
        "transpose first, then project: layer(x.flatten(2).transpose(1, 2)) with "
        "nn.Linear(channels, …)",
    ),
    Fault(
        "batch-attention",
        "error",
        "images attend to each other: with {images} images there are {keys} keys, with {more} "
        "there are {grown}",
        "put the batch first: nn.MultiheadAttention(…, batch_first=True), or permute to what the "
        "layer expects",
    ),
    Fault(
        "class-token-only",
        "warning",
        "places give {share:.0%} of their attention to the {prefix} leading tokens and next to "
        "none to other places",
        "draw the class token's own row (av.class_row); if places should see each other, train "
        "longer or pool over places instead of a class token",
    ),
)

_WEIGHTS = (
    # what the weights are
    Fault(
        "no-softmax",
        "error",
        "the product of queries and keys meets the values without a softmax: rows are neither "
        "positive nor do they sum to one, and they grow with the number of places",
        "weights = (q @ k.transpose(-2, -1) * d_k**-0.5).softmax(dim=-1)",
    ),
    Fault(
        "linear-attention",
        "note",
        "this is linear attention: keys meet values first, and weights between places never exist",
        "draw an attribution instead: av.attribute(model, images, method=…)",
    ),
    Fault(
        "wrong-axis",
        "error",
        "the softmax runs over another axis than the one that meets the values: along the keys the "
        "weights sum to {lowest:.3g} to {highest:.3g} instead of 1",
        "softmax over the keys, the axis that the values are summed over: scores.softmax(dim=-1)",
    ),
    Fault(
        "double-softmax",
        "error",
        "a softmax runs on the result of a softmax: the largest weight over {keys} keys can be no "
        "more than {ceiling:.2g}, and every row is close to uniform",
        "leave one softmax out",
    ),
    Fault(
        "rows-not-one",
        "error",
        "rows of the weights sum to {lowest:.3g} to {highest:.3g} and the smallest weight is "
        "{smallest:.3g}: what is drawn is no distribution over places",
        "softmax last, over the keys: nothing but dropout between it and the values",
    ),
    Fault(
        "empty-rows",
        "warning",
        "{share:.1%} of the queries attend to nothing: all their keys are masked",
        "let each query see itself at least, and check that True means allowed in "
        "scaled_dot_product_attention and masked in nn.MultiheadAttention",
    ),
    Fault(
        "scaled-after-softmax",
        "warning",
        "the weights are multiplied by {factor:.3g} after the softmax: that shrinks the output and "
        "leaves the weights as flat or sharp as they were",
        "scale the logits instead: (q @ k.transpose(-2, -1) * d_k**-0.5).softmax(dim=-1)",
    ),
    Fault(
        "temperature",
        "warning",
        "logits are multiplied by {scale:.3g}, which is {ratio:.3g} times 1/√{d_k}: rows start "
        "out {word} than scaled dot-product attention",
        "scale by the width of one head: q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5",
    ),
    Fault(
        "not-applied",
        "error",
        "weights are computed and thrown away: nothing is multiplied by them",
        "use what was computed: out = weights @ v, x = x * gate, and return it",
    ),
    Fault(
        "no-effect",
        "error",
        "putting entirely other weights in its place changes the model's output by {change:.1g}: "
        "what is computed here does not reach it",
        "follow its result to the output: a missing assignment, a branch multiplied by zero, or "
        "values that are the same at all places",
    ),
)

_SHAPE = (
    # what trained weights look like
    Fault(
        "near-uniform",
        "warning",
        "rows are nearly uniform, their entropy is {entropy:.4f} of log {keys}: every place gets "
        "the same attention, and the map is noise",
        "check the temperature, and that queries and keys are trained (a learning rate, a warm-up, "
        "a positional encoding); a plain mean would do the same",
    ),
    Fault(
        "saturated-heads",
        "warning",
        "in {heads} of {of} heads {share:.0%} of the rows give more than 99 % to one key: hardly "
        "any gradient reaches queries and keys",
        "scale the logits by d_k**-0.5, normalise queries and keys, or lower the learning rate",
    ),
    Fault(
        "collapsed-heads",
        "warning",
        "in {heads} of {of} heads one and the same key gets {share:.0%} of the attention of every "
        "query, in every image",
        "look at that key: padding, a register token or a corner that serves as a sink; leave it "
        "out of the map, or give the model register tokens",
    ),
    Fault(
        "duplicate-heads",
        "warning",
        "{pairs} pairs of heads give the same weights, {distance:.2g} apart in total variation: "
        "one of each would do",
        "initialise heads differently, or use fewer",
    ),
    Fault(
        "unfaithful",
        "warning",
        "making the attention uniform changes the output by {change:.2g} of what another image "
        "does: the model does not use where it looks, whatever the map shows",
        "do not read the map as a reason; compare with a model without this layer, and use an "
        "attribution",
    ),
)

_GATES = (
    Fault(
        "gate-closed",
        "warning",
        "the gate is shut: it is {highest:.3g} at most, and next to nothing passes",
        "check its bias and what it reads; add the residual around it: x + x * gate",
    ),
    Fault(
        "gate-open",
        "warning",
        "the gate is open everywhere: it is {lowest:.3g} at least and chooses nothing",
        "check its bias, and that its input is normalised; a saturated sigmoid gets no gradient",
    ),
    Fault(
        "gate-constant",
        "warning",
        "the gate is the same everywhere, {mean:.3g} ± {spread:.1g}: it scales the features and "
        "chooses nothing",
        "check that its last layer is not zero and is trained; 0.5 is a sigmoid of nothing",
    ),
    Fault(
        "gate-blind",
        "warning",
        "the gate is the same for every image, it varies by {spread:.1g} between them: it is a "
        "learned constant",
        "check what it reads: features that are pooled away, or a branch that is cut off",
    ),
    Fault(
        "gate-over-batch",
        "error",
        "the gate is normalised over the images of the batch, its values sum to {total:.3g} over "
        "{images} of them: what an image gets depends on its neighbours",
        "normalise within an image: nn.Softmax(dim=1), or a sigmoid",
    ),
    Fault(
        "softmax-gate",
        "warning",
        "the gate is a softmax over {channels} channels: together they let through 1, so that the "
        "features shrink about {channels} times and channels are played off against each other",
        "use a sigmoid for a gate: x * gate.sigmoid()",
    ),
    Fault(
        "unbounded-gate",
        "note",
        "the gate leaves 0 to 1: it reaches {lowest:.3g} to {highest:.3g}",
        "read its map as a factor, not as a share",
    ),
    Fault(
        "nothing-spatial",
        "note",
        "every gate ({gates} in all) is per channel and nothing attends over places: no map of "
        "this model's own points at a place",
        "draw av.channel_gated or an attribution; a CBAM has a spatial half, "
        "CBAM(channels, spatial=True)",
    ),
)

_RUNNING = (
    Fault(
        "random-in-eval",
        "error",
        "two runs on the same images in evaluation mode differ by {difference:.2g}: dropout or "
        "noise is left on",
        "use nn.Dropout, or F.dropout(x, p, training=self.training): its default is training=True",
    ),
    Fault(
        "left-in-training",
        "warning",
        "{modules} modules were in training mode: dropout and batch statistics would be on; "
        "everything here was measured in evaluation mode",
        "model.eval() before you watch or measure",
    ),
    Fault(
        "batch-leak",
        "error",
        "an image's output changes by {difference:.2g} when its neighbours in the batch change, in "
        "evaluation mode",
        "look for a softmax or a norm over axis 0, batch statistics without running ones, or a "
        "permute that mixes b with places",
    ),
    Fault(
        "not-finite",
        "error",
        "{share:.1%} of the values are NaN or infinite in float32",
        "look for a row with all keys masked, a division by zero, log 0 or √ of a negative number",
    ),
    Fault(
        "half-precision",
        "warning",
        "under bfloat16 autocast {share:.1%} of the output is NaN or infinite, in float32 none is",
        "mask with torch.finfo(scores.dtype).min instead of -1e9 or -inf, and run the softmax in "
        "float32",
    ),
    Fault(
        "float16-overflow",
        "note",
        "logits reach {largest:.3g}, and float16 ends at 65,504",
        "scale q before the product, or use bfloat16",
    ),
    Fault(
        "untrained",
        "note",
        "norm layers are as they were initialised, so the weights are random: flat or equal heads, "
        "dead gates and what a map points at are not judged",
        "ask again after training, or say diagnose(…, trained=True)",
    ),
    Fault(
        "nothing-seen",
        "note",
        "no attention and no gate was seen: there is nothing to judge",
        "draw an attribution: av.attribute(model, images, method='layer_gradcam', layer=…)",
    ),
)

_AIM = (
    Fault(
        "padding-attention",
        "warning",
        "{share:.1%} of the attention of real places goes to padding",
        "mask padded keys: nn.MultiheadAttention(…)(…, key_padding_mask=padding), or "
        "attn_mask=~padding[:, None, None, :] (True is allowed there)",
    ),
    Fault(
        "not-above-chance",
        "warning",
        "inside the masks lies {lift:.2f} times the attention that chance would put there (95 % "
        "interval {low:.2f} to {high:.2f}, {images} images): the map does not find the thing",
        "try another construction (av.class_row, av.rollout, av.gradient_weighted) and an "
        "attribution before you conclude that the model does not look",
    ),
    Fault(
        "outside-mask",
        "warning",
        "attention avoids the masks, they get {lift:.2f} times what chance would put there (95 % "
        "interval {low:.2f} to {high:.2f}, {images} images)",
        "check that masks and images were flipped and resized together; else the keys, not the "
        "weights, carry the thing: draw an attribution",
    ),
)

_INPUTS = (
    Fault(
        "input-not-finite",
        "error",
        "{images} images hold NaN or infinite values",
        "find them with images.isfinite().flatten(1).all(1), and repair the loader",
    ),
    Fault(
        "input-range",
        "warning",
        "pixels lie between {lowest:.3g} and {highest:.3g}: these look like bytes, and models are "
        "trained on values around 0 to 1",
        "images = images.float() / 127.5 - 1, or what the model was trained with",
    ),
    Fault(
        "input-statistics",
        "warning",
        "images are unlike those of training: at the first batch norm channel means are "
        "{shift:.1f} standard deviations off, and the spread is {ratio:.2g} times the training's",
        "normalise as in training: the same mean and standard deviation, channel order and range",
    ),
    Fault(
        "input-constant",
        "warning",
        "{images} images are one flat colour: nothing in them can be looked at",
        "check the loader, and images that failed to decode",
    ),
    Fault(
        "input-repeated",
        "note",
        "{images} images are exact copies of others in the batch",
        "check the loader's indices; copies make intervals too narrow",
    ),
)

_TRAINING = (
    Fault(
        "no-learning",
        "error",
        "after {epochs} epochs the training loss is {last:.3g}, it began at {first:.3g}: nothing "
        "was learned",
        "check the learning rate, that labels and images belong together, and that parameters are "
        "in the optimiser",
    ),
    Fault(
        "not-above-majority",
        "warning",
        "test accuracy is {accuracy:.1%}, and always giving the commonest answer would give "
        "{majority:.1%}",
        "train longer, or make the task easier first (a larger patch); a map of such a model says "
        "nothing",
    ),
    Fault(
        "overfitting",
        "warning",
        "validation loss is {last:.3g} at the end and was {best:.3g} in epoch {epoch}, while the "
        "training loss fell to {train:.3g}",
        "stop at the best epoch, draw new patch places in every epoch, or take more images",
    ),
    Fault(
        "diverged",
        "error",
        "the loss is not finite from epoch {epoch} on",
        "lower the learning rate, clip gradients, and look for rows with all keys masked",
    ),
    Fault(
        "shared-places",
        "warning",
        "{share:.0%} of the test's patches lie exactly where a training patch lies, chance would "
        "give {expected:.0%}: a network can learn the places by heart",
        "draw places from (seed, index), with another seed for each split: "
        "av.inject_patch(images, seed=…, indices=…)",
    ),
    Fault(
        "shared-photographs",
        "error",
        "{images} test images show what training images show: the test measures memory",
        "split by photograph before you cut or patch, not after",
    ),
    Fault(
        "unlikely-places",
        "warning",
        "the test's {patches} patches lie at only {places} different places, where {expected:.0f} "
        "are expected: places repeat from batch to batch",
        "pass indices: av.inject_patch(images, seed=…, indices=numbers_in_the_data_set)",
    ),
    Fault(
        "slower-than-plain",
        "note",
        "an epoch takes {seconds:.3g} s, {ratio:.2f} times that of the plain CNN, which reaches "
        "{plain_accuracy:.1%} against {accuracy:.1%}",
        "place attention after the last pool, or keep the plain network",
    ),
    Fault(
        "heavier-than-plain",
        "note",
        "training takes {megabytes:,.0f} MB at its peak, {ratio:.2f} times that of the plain CNN",
        "use the fused kernel (F.scaled_dot_product_attention), or fewer places",
    ),
)

FAULTS: dict[str, Fault] = {
    fault.code: fault
    for group in (_TOKENS, _WEIGHTS, _SHAPE, _GATES, _RUNNING, _AIM, _INPUTS, _TRAINING)
    for fault in group
}
"""Every fault by code, in the order in which the documentation lists them."""
