"""Grammars on a tiny model: samples are allowed ids, drawn from the masked distribution."""

import pytest

from distaff.model.errors import DistaffError
from distaff.runtime.request import InvalidRequest

from ..tiny import ModuloGrammar, ask, assert_greedy, tokens_of

END = 5


def obeys(grammar: str, tokens: list[int]) -> bool:
    return all(ModuloGrammar.allowed(grammar, place)[token] for place, token in enumerate(tokens))


def test_greedy_tokens_are_the_best_allowed_ones_in_any_batch(bench):
    """Constrained and free sequences of all lengths together give the masked reference's tokens."""
    grammars = [None, "2,30", "3,25", "5,40", "7,3", "190,6"]
    requests = [ask(f"g{n}", 5 + 9 * n, max_tokens=33, grammar=g) for n, g in enumerate(grammars)]
    for request, tokens in zip(requests, bench.run(requests), strict=True):
        wanted = request.params.grammar and int(request.params.grammar.split(",")[1])
        assert len(tokens) == min(33, wanted or 33)
        assert_greedy(request, tokens)
    bench.wait_idle()


@pytest.mark.parametrize(("grammar", "finish"), [("3,9", "stop"), ("3,10", "stop"), ("3,11", "length")])
def test_the_end_of_a_grammar_is_a_stop_and_a_limit_is_a_length(bench, grammar, finish):
    """If both coincide, it is a stop, because the text is complete."""
    bench.engine.submit(ask("end", 8, max_tokens=10, grammar=grammar))
    events = bench.collector.wait("end")
    assert events[-1].finish == finish and events[-1].token is not None
    assert len(tokens_of(events)) == min(10, int(grammar.split(",")[1]))


def test_draws_obey_and_repeat(bench, cramped):
    """With a temperature, a seed gives the same alone, in a batch and preempted; all tokens are allowed."""
    settings = dict(max_tokens=30, temperature=0.9, top_p=0.9, seed=5, grammar="3,50")

    def asked(prefix):
        return [ask(f"{prefix}{n}", 8 + 2 * n, **settings) for n in range(7)]

    alone = [bench.run([request])[0] for request in asked("alone")]
    together = bench.run([*asked("together"), ask("free", 40, max_tokens=20)])[:7]
    assert alone == together == cramped.run(asked("preempted"))
    assert cramped.engine.stats.preemptions > 0
    assert all(obeys("3,50", tokens) for tokens in alone)


def test_choices_of_one_prompt_differ_and_obey(bench):
    """Each choice has its own matcher."""
    settings = dict(max_tokens=20, temperature=1.0, seed=3, grammar="2,20", top_k=20)
    outputs = bench.run([ask(f"n{n}", 9, choice=n, **settings) for n in range(4)])
    assert len({tuple(tokens) for tokens in outputs}) == 4
    assert all(obeys("2,20", tokens) for tokens in outputs)


def test_log_probabilities_are_of_the_raw_distribution(bench):
    """The mask changes what is sampled, not what is reported."""
    bench.engine.submit(ask("free", 9, max_tokens=1, logprobs=20))
    bench.engine.submit(ask("held", 9, max_tokens=1, logprobs=20, grammar="2,9"))
    (free,), (held,) = bench.collector.wait("free"), bench.collector.wait("held")
    assert free.logprobs is not None and held.logprobs is not None
    assert [i for i, _ in free.logprobs.top] == [i for i, _ in held.logprobs.top]
    assert held.token is not None and held.token % 2 == 0
    known = dict(held.logprobs.top)
    assert held.token not in known or known[held.token] == pytest.approx(held.logprobs.chosen, abs=1e-5)


def test_penalties_and_biases_hold_under_a_mask(bench):
    """A constrained sequence is adjusted like any other."""
    adjust = dict(frequency_penalty=1.5, repetition_penalty=1.2, logit_bias=((6, 4.0),))
    requests = [ask(f"m{n}", 8 + n, max_tokens=30, grammar="2,40", **adjust) for n in range(3)]
    for request, tokens in zip(requests, bench.run(requests), strict=True):
        assert_greedy(request, tokens)


def test_a_grammar_that_breaks_fails_its_request_alone(bench, monkeypatch):
    """An error of a matcher ends its sequence with the reason; others continue."""
    monkeypatch.setattr(ModuloGrammar, "consume", lambda self, token: setattr(self, "error", "too hard"))
    bench.engine.submit(ask("bad", 6, max_tokens=9, grammar="2,9"))
    assert len(bench.run([ask("good", 6, max_tokens=9)])[0]) == 9
    last = bench.collector.wait("bad")[-1]
    assert last.finish == "error" and "too hard" in (last.error or "") and last.param == "grammar"
    bench.wait_idle()


def test_a_grammar_that_stops_without_an_end_is_an_error(bench, monkeypatch):
    """Only the end token is allowed, but the text does not match the grammar: not a stop."""

    def fill(self, mask_W):
        mask_W[:] = 0
        mask_W[END // 32] = 1 << END % 32
        self.error = "nothing may follow"

    monkeypatch.setattr(ModuloGrammar, "fill", fill)
    bench.engine.submit(ask("dead", 6, max_tokens=9, grammar="2,9", stop_ids=(END,)))
    assert len(bench.run([ask("good", 6, max_tokens=9)])[0]) == 9
    (event,) = bench.collector.wait("dead")
    assert (event.finish, event.error, event.param) == ("error", "nothing may follow", "grammar")
    bench.wait_idle()


def test_a_grammar_that_does_not_compile_is_the_requests_fault(bench, monkeypatch):
    """The compiler's error refuses the request, with the name of the parameter."""

    def refuse(grammar):
        raise DistaffError("too costly")

    monkeypatch.setattr(bench.engine, "_grammars", refuse)
    with pytest.raises(InvalidRequest, match="too costly") as refused:
        bench.engine.submit(ask("costly", 6, grammar="2,9"))
    assert refused.value.param == "grammar"


def test_an_engine_without_grammars_refuses_them(make_engine):
    """With the name of the parameter."""
    engine = make_engine(grammars=False)
    engine.start()
    with pytest.raises(InvalidRequest, match="grammar"):
        engine.submit(ask("none", 5, grammar="2,2"))


def test_the_end_of_a_grammar_outranks_min_tokens(bench, monkeypatch):
    """If a grammar allows only an end, the text is complete and ends, even before min_tokens."""
    monkeypatch.setattr(ModuloGrammar, "complete", False)  # like grammars that show it only by their mask
    fill = ModuloGrammar.fill

    def only_the_end(self, mask_W):
        fill(self, mask_W)
        if self._consumed == 4:
            mask_W[:] = 0
            mask_W[5 // 32] = 1 << 5 % 32

    monkeypatch.setattr(ModuloGrammar, "fill", only_the_end)
    bench.engine.submit(ask("early", 7, max_tokens=30, min_tokens=20, stop_ids=(5,), grammar="2,30"))
    bench.engine.submit(ask("free", 7, max_tokens=30, min_tokens=20, stop_ids=(5,)))
    last = bench.collector.wait("early")[-1]
    assert (last.finish, last.end, len(bench.collector.events["early"])) == ("stop", 5, 5)
    assert 5 not in bench.collector.tokens("free")[:20]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("adjusts", [{"allowed_ids": (1, 3, 4)}, {"allowed_ids": (1, 3), "min_tokens": 4}])
def test_without_an_allowed_id_the_request_fails(bench, temperature, adjusts):
    """If the grammar and the list of ids have no common id, after two tokens or none, the request fails with
    the reason. Other rows of the step do not change."""
    name = f"none {temperature} {adjusts}"
    asked = ask(name, 7, max_tokens=30, stop_ids=(0,), grammar="4,30", temperature=temperature, **adjusts)
    bench.engine.submit(asked)
    other = ask("other", 9, max_tokens=9, grammar="2,30")
    (tokens,) = bench.run([other])
    assert_greedy(other, tokens)
    events = bench.collector.wait(name)
    assert obeys("4,30", tokens_of(events)) and set(tokens_of(events)) <= {1, 3, 4}
    assert events[-1].finish == "error"
    assert events[-1].error == "the grammar and the allowed ids together allow no token"
    assert events[-1].param == "grammar"
    bench.wait_idle()
