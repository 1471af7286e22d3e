"""Generators behind a service: Gemini, OpenAI, and any server that speaks one of their protocols."""

from generators.returned import SizeRule, canvas_fault, fit_candidate, framed
from pairforge.config import fingerprint
from pairforge.image import Pixels, encode_png
from pairforge.protocols import Candidate, Trouble, Usage
from pairforge.remote_base import EditRequest, Picture, Remote, RemoteError


class RemoteGenerator:
    """Asks `client`, which is of a `*_images` endpoint; wrapped in `pairforge.remote.Paid`, it pays and remembers.

    `rule` says what the service makes. Its canvas goes along as the wish for a size; Gemini services take no such
    wish, and follow the aspect of what they are sent.
    """

    deterministic = False

    def __init__(self, client: Remote, rule: SizeRule, price_usd: float | None) -> None:
        self._client = client
        self.rule = rule
        self.price_usd = price_usd
        self.name = client.name
        self.revision = f"{client.revision}-{fingerprint(rule)[:8]}"

    def request(self, lq: Pixels, instruction: str, seed: int) -> EditRequest:
        """What `generate` asks, for estimates too. Sent as PNG: traces of a lossy format would be restored as well."""
        return EditRequest(instruction, Picture(encode_png(framed(lq, self.rule))), self.rule.canvas(lq), seed)

    def generate(self, lq: Pixels, instruction: str, seed: int) -> Candidate:
        """Raises RemoteError, also for an answer that cannot be laid over `lq`, with what it cost; where the rule names
        canvases, an input that is too large for them is refused before anything is asked."""
        fault = canvas_fault(lq, self.rule)
        if fault:
            raise RemoteError(Trouble.WRONG_SIZE, fault, usage=Usage(0.0))
        reply = self._client.ask(self.request(lq, instruction, seed))
        return fit_candidate(lq, reply.data, reply.mime, reply.usage, self.rule)
