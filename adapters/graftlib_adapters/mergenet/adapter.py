"""MergeNet as an adapter: its options, checked once, and the transfer module they build (`transfer`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta
from torch import Tensor

from graftlib.arguments import Positive
from graftlib.errors import GraftError
from graftlib.graft import Adapter, Link, LinkedMatrix

from .._options import chosen, flag, must_be, whole_number
from .encoding import energy_rank
from .lpka import LPKA, PAIRINGS, IdentityLPKA, PaperLPKA
from .transfer import Transfer

__all__ = ["MergeNet"]

_Rank = Positive | Annotated[float, Meta(gt=0, lt=1)] | None
_RANK_FIX = (
    "give an int from 1 on, None for the whole matrix, or a share of the energy between 0 and 1"
)
_Trust = Literal["host"] | Annotated[float, Meta(gt=0)] | None
_TRUST_FIX = "use trust='host', a number above 0, for example trust=0.005, or None for no bound"
_Share = Annotated[float, Meta(gt=0, le=1.7976931348623157e308)]
_SHARE_FIX = "give a number above 0, for example host_share=0.1"
_Dropout = tuple[Annotated[float, Meta(ge=0, lt=1)], Annotated[float, Meta(ge=0, lt=1)]]
_DROPOUT_FIX = (
    "give one for the attention weights and one for the attention's output, each from 0 to below 1, for "
    "example dropout=(0.1, 0.2)"
)


class MergeNet(Adapter):
    """Attention between the low-rank codes of two layers' weights, learned while the models train.

    Args:
        layers: knowledge-transfer layers, each acting on what the one before produced.
        heads: attention heads of each pairing; the paper uses 8 for vision and 12 for text.
        rank: width of the low-rank code. An int is capped at min(rows, columns); None keeps the whole matrix; a
            float between 0 and 1 is a share of the spectral energy, resolved once, when the adapter is attached.
        max_rank: cap of a rank that comes from a share.
        compress: which side of a matrix the rank replaces. ``"longer"``: the code is (rows, rank) or (rank, columns),
            whichever is smaller, so that its tokens are few and the adapter is small; a rank of min(rows, columns)
            leaves the matrix as it is. ``"rows"``: always (rank, columns), the paper's A.
        residual: keep the part of the target that the rank leaves out. False is the paper's literal form: what is
            written is B A, and the rest is lost.
        init: ``"identity"``: a fresh adapter changes nothing, to the bit. ``"paper"``: the authors' form, whose
            LayerNorms give the target's code unit row variance at the first transfer.
        write: see `Adapter`.
        signal: see `Adapter`.
        pairings: which of ``"rr", "rc", "cr", "cc"`` (target, then source, by rows or by columns) take part.
        omega: ``"learned"`` weights of the pairings, or their plain ``"mean"`` (as in the authors' code).
        width: total width of one pairing's heads for ``init="identity"``, rounded up to whole heads. The paper's
            form follows the authors' rule, max((target + source token width) / 2, 128).
        dropout: for ``init="paper"``, the probabilities that an attention weight and that an attention's output is
            dropped, in every transfer; drawn from a generator of the adapter's own. (0, 0) for none.
        trust: for ``init="identity"``, the bound of one transfer, however large the adapter's answer is. ``"host"``:
            less than `host_share` of how far the host's optimizer moved the matrix since the last transfer, so that
            writes shrink with its learning rate and a layer that does not move is not written. A number: less than
            this share of the matrix's norm, at the end of a training as at its start. None: no bound.
        host_share: of ``trust="host"``; 0.1 is about half a percent of a weight at the rates of AdamW, and no more than
            that is known of it.
        norm: for ``init="identity"``: ``"keep"`` turns each row of a written matrix along its sphere, so that its norm
            stays what it was; ``"free"`` adds the change as it is. In front of a norm layer the norm of a row has no
            function, and nothing else stops it from growing.
        re_encode: the low-rank factors B. ``"svd"``: the leading singular vectors, carried from transfer to transfer.
            ``"learned"``: trained with the adapter, as in the authors' low-rank layers.
        deterministic: plain attention, whose sums have one order.

    Raises:
        GraftError: an option out of its range, or two that contradict each other.

    >>> MergeNet(heads=12, rank=0.9)
    MergeNet(layers=2, heads=12, rank=0.9, max_rank=64, init='identity', write='replace', signal='trajectory')
    """

    def __init__(
        self,
        layers: int = 2,
        heads: int = 8,
        rank: int | float | None = 32,
        *,
        max_rank: int = 64,
        compress: Literal["longer", "rows"] = "longer",
        residual: bool = True,
        init: Literal["identity", "paper"] = "identity",
        write: Literal["replace", "probe"] = "replace",
        signal: Literal["trajectory", "gradient"] = "trajectory",
        pairings: Sequence[str] = PAIRINGS,
        omega: Literal["learned", "mean"] = "learned",
        width: int = 128,
        dropout: tuple[float, float] = (0.1, 0.2),
        trust: float | Literal["host"] | None = "host",
        host_share: float = 0.1,
        norm: Literal["keep", "free"] = "keep",
        re_encode: Literal["svd", "learned"] = "svd",
        deterministic: bool = False,
    ) -> None:
        whole_number("layers", layers)
        whole_number("heads", heads)
        whole_number("max_rank", max_rank)
        whole_number("width", width)
        must_be(_Rank, "rank", rank, "is no rank.", _RANK_FIX)
        must_be(_Trust, "trust", trust, "is no share of a norm.", _TRUST_FIX)
        must_be(_Share, "host_share", host_share, "is no share.", _SHARE_FIX)
        must_be(_Dropout, "dropout", dropout, "is not a pair of probabilities.", _DROPOUT_FIX)
        flag("residual", residual)
        flag("deterministic", deterministic)
        chosen("compress", compress, ("longer", "rows"))
        chosen("init", init, ("identity", "paper"))
        chosen("write", write, ("replace", "probe"))
        chosen("signal", signal, ("trajectory", "gradient"))
        chosen("omega", omega, ("learned", "mean"))
        chosen("norm", norm, ("keep", "free"))
        chosen("re_encode", re_encode, ("svd", "learned"))
        _check_pairings(pairings)
        if init == "identity" and not residual and rank is not None:
            raise GraftError(
                "residual=False and init='identity' contradict each other below full rank.",
                why="without the part that the rank leaves out, B A is not W: attaching would change the model",
                fix="use residual=True, rank=None, or init='paper'",
                option="residual",
            )
        self.layers = layers
        self.heads = heads
        self.code_rank = rank
        self.max_rank = max_rank
        self.compress = compress
        self.residual = residual
        self.init = init
        self.write = write
        self.signal = signal
        self.pairings = tuple(pairings)
        self.omega = omega
        self.width = width
        self.dropout = (float(dropout[0]), float(dropout[1]))
        self.trust = float(trust) if isinstance(trust, int) else trust
        self.host_share = float(host_share)
        self.norm = norm
        self.re_encode = re_encode
        self.deterministic = deterministic

    def rank(self, matrix: Tensor, limit: int) -> int | None:
        """See `Adapter.rank`: an int is capped, None stays None, a share of the energy is measured on `matrix`."""
        if self.code_rank is None:
            return None
        if isinstance(self.code_rank, float):
            return energy_rank(matrix, self.code_rank, min(self.max_rank, limit))
        return min(self.code_rank, limit)

    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> Transfer:
        """See `Adapter.build`; the initial values are drawn from torch's global random state."""
        return Transfer(
            matrices,
            links,
            layers=self.layers,
            lpka=self._lpka,
            relative=self.init == "identity",
            residual=self.residual,
            compress=self.compress,
            learned=self.re_encode == "learned",
            trust=self.trust if self.init == "identity" else None,
            host_share=self.host_share,
            keep_norms=self.init == "identity" and self.norm == "keep",
            probe=self.write == "probe",
            dropout=self.init == "paper" and any(self.dropout),
        )

    def _lpka(self, target: tuple[int, int], source: tuple[int, int]) -> LPKA:
        learned, plain = self.omega == "learned", self.deterministic
        shared = (target, source, self.pairings, self.heads)
        if self.init == "paper":
            return PaperLPKA(*shared, learned=learned, deterministic=plain, dropout=self.dropout)
        return IdentityLPKA(*shared, width=self.width, learned=learned, deterministic=plain)

    def __repr__(self) -> str:
        options = {
            "layers": self.layers,
            "heads": self.heads,
            "rank": self.code_rank,
            "max_rank": self.max_rank,
            "init": self.init,
            "write": self.write,
            "signal": self.signal,
        }
        return f"MergeNet({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def _check_pairings(pairings: object) -> None:
    if isinstance(pairings, str) or not isinstance(pairings, Sequence) or not pairings:
        raise GraftError(
            f"pairings={pairings!r} is not a list of pairings.",
            fix="give some of " + ", ".join(map(repr, PAIRINGS)) + ", for example pairings=('rr',)",
            option="pairings",
        )
    for pairing in pairings:
        chosen("pairings", pairing, PAIRINGS)
    if len(set(pairings)) < len(pairings):
        raise GraftError(
            f"pairings={tuple(pairings)!r} names one twice.",
            fix="name each pairing once",
            option="pairings",
        )
