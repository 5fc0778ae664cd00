"""Our own stack, through the sampler that `LanguageModel.sample` uses."""

from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.stacks import Mark, Prompts
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.inference import Sampler, SamplingConfig, prefill
from griffin_jax.inference.decode import row_keys
from griffin_jax.inference.prefill import capacity_for
from griffin_jax.inference.sampler import Generation
from griffin_jax.language_model import LanguageModel


class GriffinStack:
    """See `stacks.Stack`.

    Attributes:
      lm: The model.
      burst: Tokens in one dispatch.
    """

    def __init__(
        self, subject: Subject, seed: int = 0, burst: int = 32, stack_layers: bool | None = None
    ):
        self.lm: LanguageModel
        self.lm, self.about = subject.load(seed, stack_layers)
        self.about: dict[str, Any] = self.about | {"burst": burst}
        self.burst = burst

    def warm(self, prompts: Prompts, tokens: int) -> None:
        """See `stacks.Stack`."""
        self.generate(prompts, min(tokens, self.burst + 1), lambda n: None)
        # Under an unbounded window a long text runs in several programs, one for each room.
        begin = len(prompts[0])
        rooms = {capacity_for(self.lm.config, n): None for n in range(begin, begin + tokens + 1)}
        with memory.meeting_limits():
            for room in [*rooms][:-1]:
                self.start_at(room - 1, len(prompts), 1, room).advance(1)

    def generate(self, prompts: Prompts, tokens: int, mark: Mark) -> None:
        """See `stacks.Stack`; marks come at multiples of the burst.

        The first token is drawn alone, then the rest of its burst. From there on the next burst is
        under way while one is received, as in `Sampler.generate`.
        """
        with memory.meeting_limits():
            generation = self._sampler().start(prompts, max_new_tokens=tokens)
            generation.advance(1)
            mark(1)
            done = min(self.burst, tokens)
            if done > 1:
                generation.advance(done - 1)
                mark(done)
            for _ in generation.bursts():
                done = min(done + self.burst, tokens)
                mark(done)

    def start_at(
        self,
        position: int,
        batch_size: int,
        tokens: int,
        room: int | None = None,
        *,
        burst: int | None = None,
        most: int | None = None,
    ) -> Generation:
        """Rows that go on from a state of zeros which stands at `position`.

        Zeros cost what anything else costs; where the text stood before cannot be told from it.

        Args:
          position: How many tokens the state is taken to have read.
          batch_size: How many rows there are.
          tokens: How many will be drawn.
          room: Slots under an unbounded window, before it makes room itself.
          burst: Tokens that the program has room for, which is compiled for each; `burst` of the
            stack by default.
          most: Tokens in one dispatch of that program; all that it has room for by default.
        """
        sampler = self.lm.sampler(burst=burst or self.burst)
        return _Placed(sampler, position, batch_size, tokens, room or position + 1, most)

    def peak_bytes(self) -> int | None:
        """See `stacks.Stack`."""
        return memory.peak_bytes()

    def _sampler(self):
        return self.lm.sampler(burst=self.burst)


class _Placed(Generation):
    """A generation whose state is made, not read. A `Context` would hold it a second time."""

    def __init__(
        self,
        sampler: Sampler,
        position: int,
        batch_size: int,
        tokens: int,
        room: int,
        most: int | None,
    ):
        self._room = room
        self._most = most or sampler.burst
        prompts = [[0] * position + [1]] * batch_size
        keys = row_keys(0, batch_size)
        super().__init__(sampler, prompts, None, SamplingConfig(), tokens, keys, ())

    def _dispatch(self, limit):
        return super()._dispatch(min(limit, self._most))

    def _read(self, rows):
        model, params = self._sampler.model, self._sampler.params
        batch_size = prefill.batch_size_for(len(rows))
        state = prefill.fresh_state(model, params, batch_size, self._room)
        placed = state.replace(position=jnp.full_like(state.position, len(rows[0])))
        return jax.block_until_ready(placed)
