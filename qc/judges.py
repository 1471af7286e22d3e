"""Judges of a pair: a language model behind a client, one on this machine, and a weight-free stand-in.

All give the five scores of `pairforge.protocols.ASPECTS`; what they mean for the pair is decided by `qc.verdict`.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pairforge.config import fingerprint
from pairforge.image import Pixels, encode_png
from pairforge.protocols import ASPECTS, BackendError, Judgement, Trouble, Usage
from pairforge.remote_base import Chat, ChatRequest, Picture, RemoteError
from qc.alignment import measure_alignment
from qc.gain import GainRule, measure_gain, measure_quality
from qc.verdict import answer_schema, parse_judgement

_PROMPTS = Path(__file__).parent / "prompts" / "judge.yaml"


class ChatJudge:
    """Asks a model with our wording (`prompts/judge.yaml`), LQ first, and reads its answer without goodwill.

    Images go out as PNG, so that no codec adds to what is judged. `revision` names the model's and a hash of wording
    and schema. What cannot be read is a RemoteError (malformed) with what the answer cost; asking again is the
    caller's decision.
    """

    def __init__(self, chat: Chat, max_output_tokens: int = 2048) -> None:
        self._chat = chat
        self._max_output_tokens = max_output_tokens
        self.name = chat.name
        self.revision = f"{chat.revision}-judge{judge_prompt_hash()[:12]}"

    def judge(self, lq: Pixels, hq: Pixels, category: str) -> Judgement:
        reply = self._chat.ask(self.request(lq, hq, category))
        try:
            return parse_judgement(reply.text, reply.usage)
        except BackendError as error:
            raise RemoteError(error.trouble, error.detail, usage=reply.usage) from error
        except UnicodeDecodeError as error:
            raise RemoteError(Trouble.MALFORMED, "the answer is no UTF-8 text", usage=reply.usage) from error

    def request(self, lq: Pixels, hq: Pixels, category: str) -> ChatRequest:
        """What `judge` asks; for estimates too."""
        return ChatRequest(
            judge_instruction(category),
            (Picture(encode_png(lq)), Picture(encode_png(hq))),
            json_schema=answer_schema(),
            max_output_tokens=self._max_output_tokens,
        )


@cache
def _wording() -> Any:
    return yaml.safe_load(_PROMPTS.read_text(encoding="utf-8"))


def judge_instruction(category: str) -> str:
    """Text for one category; one that has no note of its own gets the note for others."""
    note = _wording()["category_notes"].get(category, _wording()["other_note"])
    return str(_wording()["instruction"]).replace("{category_note}", note).strip()


@cache
def judge_prompt_hash() -> str:
    """SHA-256 over the wording, its version and the schema of the answer."""
    return fingerprint({"wording": _wording(), "schema": answer_schema()})


Map = tuple[tuple[float, ...], tuple[float, ...]]
"""Measured values, rising, and the scores there; straight lines between them, constant outside."""
_GAIN: Map = ((0.0, 0.15, 0.4, 1.0), (20, 60, 85, 100))
_LOST: Map = ((0.0, 0.02, 0.06, 0.15, 0.4), (100, 92, 75, 45, 0))
_RECALL: Map = ((0.2, 0.4, 0.6, 0.8), (0, 60, 90, 100))
_PHASE: Map = ((0.03, 0.1, 0.2, 0.4), (0, 60, 90, 100))
_SHIFT_PERMILLE: Map = ((0.3, 1.0, 2.0, 6.0), (100, 85, 60, 0))
_ROTATION_DEG: Map = ((0.05, 0.15, 0.3, 1.0), (100, 85, 60, 0))
_FLOW_MEDIAN_PERMILLE: Map = ((1.0, 2.0, 3.0, 8.0), (100, 85, 60, 0))
_FLOW_P95_PERMILLE: Map = ((4.0, 8.0, 12.0, 30.0), (100, 85, 60, 0))
_PRECISION: Map = ((0.15, 0.35, 0.5, 0.7), (0, 60, 85, 100))
_COLOUR: Map = ((2.0, 6.0, 12.0, 30.0), (100, 85, 60, 0))
_HUE: Map = ((6.0, 14.0, 22.0, 45.0), (100, 85, 60, 0))
_CHANGES_LIGHT = frozenset({"low_light", "haze", "old_photo", "flare", "reflection", "rain", "snow", "general_mixed"})
"""Categories whose degradation takes lightness and chroma away, so that only a change of hue counts against HQ."""


class MetricJudge:
    """Scores from `measure_alignment` and `measure_gain` by fixed maps: no model, sees nothing, knows no objects.

    It finds what is shifted, warped, recoloured, pasted in, or not better than LQ. It cannot tell a true detail from
    an invented one that follows the old edges, a face from another face of the same outline, or a readable letter
    from a wrong one. It does not see rain, snow, flare, reflections or moire, neither before nor after. Heavy damage
    of LQ, such as a long motion blur, costs a true HQ its consistency. Its `content_reasonableness` says only whether
    HQ has edges where LQ has none, and must not be taken for a look at the picture. Each aspect is the lowest of its
    maps:

    restoration_quality: quality_gain, rising
    object_consistency: structure_lost_frac, falling; edge_recall, phase_response, rising
    geometry_alignment: shift, flow (per mille of the longer side) and rotation, falling
    content_reasonableness: edge_precision, rising
    colour_consistency: colour_delta_e, or hue_delta_e where the category changes light, falling
    """

    name = "metric"
    revision = "1"

    def __init__(self, gain_rule: GainRule | None = None) -> None:
        self._gain_rule = gain_rule or GainRule()
        if gain_rule is not None:
            self.revision = f"1-{fingerprint(gain_rule)[:8]}"

    def judge(self, lq: Pixels, hq: Pixels, category: str) -> Judgement:
        """Raises ValueError where the shapes differ."""
        numbers = measure_alignment(lq, hq)
        numbers |= measure_gain(measure_quality(lq), measure_quality(hq), self._gain_rule)
        return judgement_of(numbers, max(lq.shape[:2]), category)


def judgement_of(numbers: Mapping[str, float], longer_side_px: int, category: str) -> Judgement:
    """The judgement of MetricJudge from stored numbers; pure, so that thresholds can change without pixels."""
    permille = {
        name: 1000 * numbers[f"{name}_px"] / longer_side_px for name in ("ecc_shift", "flow_median", "flow_p95")
    }
    colour, colour_map = ("hue_delta_e", _HUE) if category in _CHANGES_LIGHT else ("colour_delta_e", _COLOUR)
    terms: dict[str, list[tuple[str, float, Map]]] = {
        "restoration_quality": [("quality_gain", numbers["quality_gain"], _GAIN)],
        "object_consistency": [
            ("structure_lost_frac", numbers["structure_lost_frac"], _LOST),
            ("edge_recall", numbers["edge_recall"], _RECALL),
            ("phase_response", numbers["phase_response"], _PHASE),
        ],
        "geometry_alignment": [
            ("ecc_shift_permille", permille["ecc_shift"], _SHIFT_PERMILLE),
            ("ecc_rotation_deg", numbers["ecc_rotation_deg"], _ROTATION_DEG),
            ("flow_median_permille", permille["flow_median"], _FLOW_MEDIAN_PERMILLE),
            ("flow_p95_permille", permille["flow_p95"], _FLOW_P95_PERMILLE),
            ("phase_response", numbers["phase_response"], _PHASE),
        ],
        "content_reasonableness": [
            ("edge_precision", numbers["edge_precision"], _PRECISION),
            ("structure_lost_frac", numbers["structure_lost_frac"], _LOST),
        ],
        "colour_consistency": [(colour, numbers[colour], colour_map)],
    }
    scores, reasons = {}, {}
    for aspect in ASPECTS:
        lowest, name, value = min(
            (int(np.interp(value, *points)), name, value) for name, value, points in terms[aspect]
        )
        scores[aspect], reasons[aspect] = lowest, f"{name} {value:.3f}"
    return Judgement(scores, reasons, own_word=None, usage=Usage(0.0))
