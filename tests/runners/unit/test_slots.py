import pickle
import subprocess
import sys
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runners.worker.engines.llama.slots import (
    Copy,
    Discard,
    EmptyPrompt,
    Keep,
    Load,
    Piece,
    PromptTooLong,
    Remove,
    Slots,
    Truncate,
)


class Cache:
    """The naive model of a KV cache: for each sequence its cells, which are distinct objects [position, token]."""

    def __init__(self, ids):
        self.seqs = {seq: [] for seq in range(ids)}
        self.stored = {}
        self.computed = 0
        self.most = 0  # cells in use at once

    def do(self, commands):
        for command in commands:
            match command:
                case Copy(source, seq, length):
                    assert 1 <= length <= len(self.seqs[source]), "a copy of what its source has not computed"
                    assert not self.seqs[seq], "a copy over what is there"
                    self.seqs[seq] = self.seqs[source][:length]
                case Remove(seq):
                    self.seqs[seq] = []
                case Truncate(seq, length):
                    assert length < len(self.seqs[seq])
                    del self.seqs[seq][length:]
                case Keep(seq, key, start, end):
                    assert key not in self.stored
                    assert 0 <= start < end <= len(self.seqs[seq])
                    self.stored[key] = start, self.tokens(seq)[start:end]
                case Load(seq, parts):
                    assert not self.seqs[seq]
                    for key, start, end in parts:
                        begin, tokens = self.stored[key]
                        assert begin == start == len(self.seqs[seq]) < end <= begin + len(tokens)
                        self.most = max(self.most, self.used + len(tokens))
                        self.seqs[seq] += [[start + i, token] for i, token in enumerate(tokens[: end - start])]
                case Discard(key):
                    del self.stored[key]
                case _:
                    raise AssertionError(command)

    def decode(self, piece):
        cells = self.seqs[piece.seq]
        assert piece.start == len(cells), "a piece that does not go on where its sequence ends"
        assert piece.tokens
        cells += [[piece.start + i, token] for i, token in enumerate(piece.tokens)]
        self.computed += len(piece.tokens)

    def tokens(self, seq):
        return [token for _, token in self.seqs[seq]]

    @property
    def used(self):
        return len({id(cell) for cells in self.seqs.values() for cell in cells})


class Job:
    def __init__(self, tokens, max_tokens, alone):
        self.tokens = list(tokens)
        self.prompt = len(self.tokens)
        self.total = self.prompt + max_tokens
        self.alone = alone
        self.blocked = False


TOKEN = st.integers(0, 1)
#: Stems that share beginnings, so that most newcomers have something in common with somebody.
PROMPT = st.builds(
    lambda stem, length, tail: stem[:length] + tail,
    st.sampled_from([[0] * 24, [0] * 10 + [1] * 14, [1] * 24]),
    st.integers(0, 24),
    st.lists(TOKEN, min_size=1, max_size=4),
)
CHOICE = st.integers(0, 10**6)


class Machine(RuleBasedStateMachine):
    """What the engine does, at random, against the naive cache."""

    @initialize(
        slots=st.integers(1, 4),
        parked=st.integers(0, 3),
        cells=st.integers(30, 90),
        batch=st.integers(0, 12),
        piece=st.integers(1, 8),
        shortest=st.integers(1, 5),
        share=st.sampled_from([True, True, True, False]),
        stored=st.sampled_from([0, 20, 60, 200]),
        rent=st.integers(0, 20),
    )
    def start(self, slots, parked, cells, batch, piece, shortest, share, stored, rent):
        self.stored = stored
        self.most, self.ids, self.cells, self.batch, self.piece = slots, slots + parked, cells, slots + batch, piece
        self.slots = Slots(
            slots=slots,
            cells=cells,
            batch=self.batch,
            piece=piece,
            parked=parked,
            share=share,
            shortest=shortest,
            stored=stored,
            rent=rent,
        )
        self.cache = Cache(self.ids)
        self.jobs = {}  # all that have not ended
        self.line = []  # those that wait, in order
        self.number = 0
        self.broken = False

    @rule(broken=st.booleans())
    def store_breaks(self, broken):
        self.broken = broken

    @property
    def live(self):
        return [job for job in self.jobs if job not in self.line]

    def end(self, job, commands):
        self.cache.do(commands)
        del self.jobs[job]
        if job in self.line:
            self.line.remove(job)

    def some(self, jobs, choice):
        return sorted(jobs)[choice % len(jobs)]

    @rule(tokens=PROMPT, wanted=st.integers(1, 8), alone=st.sampled_from([False] * 9 + [True]))
    def submit(self, tokens, wanted, alone):
        if len(tokens) + wanted > self.cells:
            with pytest.raises(PromptTooLong):
                self.slots.submit(self.number, tokens, wanted, alone=alone)
            return
        self.slots.submit(self.number, tokens, wanted, alone=alone)
        self.jobs[self.number] = Job(tokens, wanted, alone)
        self.line.append(self.number)
        self.number += 1

    @rule(tokens=PROMPT, tails=st.lists(st.lists(TOKEN, min_size=1, max_size=3), min_size=2, max_size=5))
    def submit_alike(self, tokens, tails):
        for tail in tails:
            self.submit(tokens + tail, 3, alone=False)
        self.step(99, 99, 0)

    def admit(self):
        while commands := self.slots.admit():
            assert not any(isinstance(command, Load) for command in commands[:-1])
            if isinstance(commands[-1], Load) and self.broken:
                self.cache.do(commands[:-1])
                self.cache.do(self.slots.not_loaded(commands[-1].seq))
                assert not self.cache.stored
            else:
                self.cache.do(commands)
            assert self.cache.most <= self.cells, "no room for what is loaded"
        admitted = list(self.slots._live)
        came = [job for job in self.line if job in admitted]
        assert came == self.line[: len(came)], "overtaken"
        self.line = self.line[len(came) :]
        assert set(admitted) == set(self.live), "a job was lost"
        assert len(admitted) <= self.most
        assert len(admitted) == 1 or not any(self.jobs[job].alone for job in admitted)
        assert admitted or not self.line, "nobody is admitted, and nobody is live"

    def check_plan(self, pieces):
        assert sum(len(piece.tokens) for piece in pieces) <= self.batch
        assert len({piece.job for piece in pieces}) == len({piece.seq for piece in pieces}) == len(pieces)
        generating = [p for p in pieces if p.start >= self.jobs[p.job].prompt]
        prompts = pieces[len(generating) :]
        assert generating == pieces[: len(generating)], "prompts come after tokens"
        if generating:
            assert sum(len(piece.tokens) for piece in prompts) <= self.piece
        for piece in pieces:
            job = self.jobs[piece.job]
            assert 0 <= piece.seq < self.ids
            assert self.cache.tokens(piece.seq) == job.tokens[: piece.start], "computed on what is not its own"
            end = piece.start + len(piece.tokens)
            assert list(piece.tokens) == job.tokens[piece.start : end]
            assert piece.sample == (end == len(job.tokens))
            assert not (piece.sample and job.blocked)
        for job, seq in ((job, self.slots._jobs[job].seq) for job in self.live):
            ready = self.jobs[job].prompt <= len(self.cache.seqs[seq]) and not self.jobs[job].blocked
            assert ready == (job in [piece.job for piece in generating]), "everybody who can generates"
        assert pieces or all(self.jobs[job].blocked for job in self.live), "no progress"

    @rule(cut=st.integers(0, 40), stop=st.integers(0, 12), token=TOKEN)
    def step(self, cut, stop, token):
        """`cut`: the batch is decoded in halves; `stop`: one of those that sample ends there."""
        self.admit()
        pieces = self.slots.plan()
        self.check_plan(pieces)
        assert self.slots.plan() == pieces
        if cut < len(pieces) and len(pieces[cut].tokens) > 1:
            whole = pieces[cut]
            half = len(whole.tokens) // 2
            rest = whole._replace(start=whole.start + half, tokens=whole.tokens[half:])
            self.run([*pieces[:cut], whole._replace(tokens=whole.tokens[:half])])
            self.run([rest])
            self.run(pieces[cut + 1 :])
        else:
            self.run(pieces)
        for index, piece in enumerate(pieces):
            job = self.jobs[piece.job]
            if not piece.sample:
                continue
            if index == stop or len(job.tokens) == job.total:
                self.end(piece.job, self.slots.finish(piece.job))
            else:
                job.tokens.append(token)
                self.slots.sampled(piece.job, token)
                if len(job.tokens) == job.total:
                    self.end(piece.job, self.slots.finish(piece.job))

    def run(self, pieces):
        for piece in pieces:
            self.cache.decode(piece)
            assert self.cache.used <= self.cells
        self.cache.do(self.slots.advance(pieces))

    @precondition(lambda self: self.jobs)
    @rule(choice=CHOICE)
    def cancel(self, choice):
        job = self.some(self.jobs, choice)
        self.end(job, self.slots.cancel(job))
        assert self.slots.cancel(job) == []

    @precondition(lambda self: self.jobs)
    @rule(choice=CHOICE)
    def fail(self, choice):
        job = self.some(self.jobs, choice)
        self.end(job, self.slots.failed(job))

    @property
    def leaders(self):
        """Live jobs that others wait for."""
        sequences = self.slots._sequences
        sources = {sequences._plan.source(seq) for seq in sequences._followers}
        return [job for job in self.live if self.slots._jobs[job].seq in sources]

    @precondition(lambda self: hasattr(self, "slots") and self.leaders)
    @rule(choice=CHOICE, how=st.sampled_from(["cancel", "failed", "block"]), then=st.booleans())
    def lose_a_leader(self, choice, how, then):
        job = self.some(self.leaders, choice)
        if how == "block":
            self.jobs[job].blocked = True
            self.slots.block(job)
        else:
            self.end(job, getattr(self.slots, how)(job))
        if then:
            self.step(99, 99, 0)

    @precondition(lambda self: self.live)
    @rule(choice=CHOICE, largest=st.booleans())
    def requeue(self, choice, largest):
        job = self.slots.largest() if largest else self.some(self.live, choice)
        assert job in self.live
        self.cache.do(self.slots.requeue(job))
        self.jobs[job].prompt = len(self.jobs[job].tokens)
        self.line.insert(0, job)

    @precondition(lambda self: self.jobs)
    @rule(choice=CHOICE)
    def block(self, choice):
        job = self.some(self.jobs, choice)
        self.jobs[job].blocked = not self.jobs[job].blocked
        (self.slots.block if self.jobs[job].blocked else self.slots.unblock)(job)

    @rule()
    def tidy(self):
        parked = self.slots.parked
        commands = self.slots.tidy()
        self.cache.do(commands)
        assert self.slots.parked == parked - bool(commands)
        assert not commands or (parked > 1 and not self.live)

    @rule()
    def evict(self):
        self.cache.do(self.slots.evict())

    @invariant()
    def counts(self):
        if not hasattr(self, "slots"):
            return
        slots, cache = self.slots, self.cache
        assert slots.used == cache.used
        assert slots.stored == sum(len(tokens) for _, tokens in cache.stored.values()) <= self.stored
        for job in slots._live.values():  # what was loaded, too, is what it says
            held = cache.tokens(job.seq)
            assert held == list(job.tokens[: len(held)])
        assert slots.used <= slots.planned <= self.cells
        assert (slots.live, slots.waiting) == (len(self.live), len(self.line))
        seqs = {job.seq for job in slots._live.values()}
        parked = [seq for seq, cells in cache.seqs.items() if cells and seq not in seqs]
        assert slots.parked == len(parked)
        in_use = {id(cell) for seq in seqs for cell in cache.seqs[seq]}
        assert cache.used - len(in_use) <= slots.cached <= sum(len(cache.seqs[seq]) for seq in parked)

    def teardown(self):
        if not hasattr(self, "slots"):
            return
        for job in self.jobs:
            self.jobs[job].blocked = False
            self.slots.unblock(job)
        for _ in range(sum(job.total for job in self.jobs.values()) + 1):
            if self.jobs:
                self.step(99, 99, 0)
                self.counts()
        assert not self.jobs, "not all have ended"
        while self.slots.parked:
            self.evict()
        self.counts()
        assert self.cache.used == self.slots.planned == 0
        assert sorted(self.slots._sequences._free) == list(range(self.ids))
        assert len(self.slots._sequences._tree) == 0


class TestAtRandom(Machine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=40)


# ------------------------------------------------------------------------------------------- rules, one by one


class Engine:
    """Slots with a cache, in steps. Samples the token 7; a job ends when it has its max_tokens."""

    def __init__(self, **options):
        options = {"slots": 4, "cells": 1000, "batch": 64} | options
        self.slots = Slots(**options)
        self.cache = Cache(options["slots"] + options.get("parked", options["slots"]))
        self.commands = []
        self.left = {}

    def do(self, commands):
        self.cache.do(commands)
        self.commands += commands

    def submit(self, job, tokens, max_tokens=4, **options):
        self.slots.submit(job, tokens, max_tokens, **options)
        self.left[job] = max_tokens

    def step(self):
        while commands := self.slots.admit():
            self.do(commands)
        pieces = self.slots.plan()
        for piece in pieces:
            self.cache.decode(piece)
        self.do(self.slots.advance(pieces))
        for piece in pieces:
            if piece.sample:
                self.left[piece.job] -= 1
                if self.left[piece.job]:
                    self.slots.sampled(piece.job, 7)
                else:
                    self.do(self.slots.finish(piece.job))
        return pieces

    def steps(self):
        """Until there is nothing to do."""
        return list(iter(self.step, []))

    def live(self):
        return list(self.slots._live)


def lengths(pieces):
    return [(piece.job, piece.start, len(piece.tokens)) for piece in pieces]


COMMON = list(range(100, 500))


def test_what_sixteen_prompts_have_in_common_is_computed_once():
    engine = Engine(slots=16, cells=2048, batch=512)
    for job in range(16):
        engine.submit(job, COMMON + [1000 + 20 * job + i for i in range(12)], 1)
    engine.steps()
    assert engine.slots.live == engine.slots.waiting == 0
    assert engine.cache.computed == 412 + 15 * 12
    assert len(engine.commands) == 15


def test_followers_are_admitted_at_the_cost_of_what_they_do_not_share():
    engine = Engine(slots=16, cells=412 + 64 + 15 * (12 + 64), batch=512)
    for job in range(16):
        engine.submit(job, COMMON + [1000 + 20 * job + i for i in range(12)], 64)
    engine.step()
    assert engine.slots.live == 16
    assert engine.slots.planned == 412 + 64 + 15 * (12 + 64)


@pytest.mark.parametrize("how", ["cancel", "failed", "requeue"])
def test_when_a_leader_goes_the_next_one_goes_on_from_where_it_was(how):
    engine = Engine(batch=64)
    for job in range(4):
        engine.submit(job, [*COMMON, 1000 + job], 1)
    assert [lengths(engine.step()) for _ in range(2)] == [[(0, 0, 64)], [(0, 64, 64)]]
    engine.do(getattr(engine.slots, how)(0))
    assert lengths(engine.step())[0] == (1, 128, 64)
    engine.steps()
    assert engine.slots.live == engine.slots.waiting == 0
    assert engine.cache.computed == 400 + (4 if how == "requeue" else 3)


def test_an_heir_shares_with_those_that_have_gone_on_already():
    engine = Engine(cells=560, batch=64)
    engine.submit(0, COMMON, 1)
    engine.step()
    engine.submit(1, [*COMMON[:70], *range(30)], 30)  # takes 64 now
    engine.submit(2, [*COMMON[:399], 1], 30)  # waits
    engine.do(engine.slots.admit())
    engine.commands.clear()
    engine.do(engine.slots.failed(0))
    assert engine.commands == [Copy(0, 2, 64), Remove(0)]
    engine.step()
    assert engine.slots.used == engine.cache.used
    engine.steps()
    assert engine.cache.computed == 64 + (36 + 29) + (336 + 29)


def test_nobody_waits_for_the_last_token_of_a_prompt_that_may_be_held_back():
    engine = Engine()
    engine.submit(0, COMMON[:100])
    engine.submit(1, [*COMMON[:100], 1, 2])
    engine.slots.block(0)
    assert [lengths(pieces) for pieces in engine.steps()] == [[(0, 0, 64)], [(0, 64, 35)], [(1, 99, 3)]] + [
        [(1, 102 + i, 1)] for i in range(3)
    ]


def test_a_cancelled_leader_leaves_its_part_to_its_followers_and_its_cells():
    engine = Engine(slots=2, cells=500)
    engine.submit(0, COMMON[:300], 100)
    engine.submit(1, [*COMMON[:300], 1], 50)
    engine.step()
    engine.do(engine.slots.cancel(0))
    assert engine.slots.planned == 351  # the 64 that are parked, and what the follower needs beyond
    assert lengths(engine.step()) == [(1, 64, 64)]


def test_a_prompt_just_like_one_before_computes_its_last_token():
    engine = Engine()
    engine.submit(0, COMMON, 1)
    engine.steps()
    engine.submit(1, COMMON, 1)
    assert lengths(engine.step()) == [(1, 399, 1)]


def test_a_conversation_goes_on_in_its_own_sequence_without_a_copy():
    engine = Engine()
    engine.submit(0, COMMON[:50])
    engine.steps()
    engine.submit(1, [*COMMON[:50], 7, 7, 7, 1, 2])
    assert lengths(engine.step()) == [(1, 53, 2)]
    assert engine.commands == []
    engine.submit(2, [*COMMON[:50], 7, 7, 7, 3])  # the first sequence is in use: a copy of what it has
    engine.step()
    assert engine.commands == [Copy(0, 1, 53)]


def test_short_matches_are_left():
    engine = Engine(shortest=16)
    engine.submit(0, COMMON[:50])
    engine.steps()
    engine.submit(1, [*COMMON[:15], *range(40)])
    assert lengths(engine.step()) == [(1, 0, 55)]


def test_a_newcomer_takes_now_what_waiting_would_hardly_lengthen():
    engine = Engine(batch=64, shortest=16)
    engine.submit(0, COMMON[:75])
    engine.step()
    engine.submit(1, [*COMMON[:74], 1, 2])
    engine.do(engine.slots.admit())
    assert engine.commands == [Copy(0, 1, 64)]


def test_nothing_is_shared_or_kept_without_share():
    engine = Engine(share=False)
    for job in range(2):
        engine.submit(job, COMMON)
        engine.steps()
    assert engine.slots.parked == 0
    assert engine.cache.computed == 2 * (400 + 3)


def test_admission_is_in_order_and_by_worst_case():
    engine = Engine(cells=100)
    engine.submit(0, range(30), 31)
    engine.submit(1, range(100, 130), 20)
    engine.submit(2, [1], 5)
    engine.step()
    assert engine.live() == [0]  # the last would fit, but overtakes nobody
    while engine.slots.live == 1 and 0 in engine.live():
        engine.step()
    engine.step()
    assert engine.live() == [1, 2]


def test_parked_sequences_make_place_the_least_recently_used_first():
    engine = Engine(cells=120, slots=2, parked=4)
    for job in range(3):
        engine.submit(job, range(100 * job, 100 * job + 30), 1)
        engine.steps()
    engine.submit(3, [*range(20), 5, 6], 1)  # uses the first: now the second is the oldest
    engine.steps()
    assert engine.slots.parked == 4
    engine.commands.clear()
    engine.submit(4, range(500, 530), 1)
    engine.steps()
    assert engine.commands == [Remove(1)]


def test_nothing_is_evicted_for_one_that_does_not_fit_even_so():
    engine = Engine(cells=100)
    engine.submit(0, range(30), 1)
    engine.steps()
    engine.submit(1, range(100, 130), 40)
    engine.submit(2, range(200, 230), 10)
    engine.step()
    assert engine.live() == [1]
    assert engine.slots.parked == 1


def test_the_source_of_a_copy_goes_last_and_leaves_what_was_copied():
    engine = Engine(cells=100, slots=2)
    engine.submit(0, COMMON[:80], 4)
    engine.steps()
    engine.submit(1, [*COMMON[:60], 1], 39)
    assert lengths(engine.step()) == [(1, 60, 1)]
    assert engine.commands == [Copy(0, 1, 60), Remove(0)]


def test_the_last_parked_id_is_taken_over_with_what_it_shares():
    engine = Engine(slots=1, parked=0)
    engine.submit(0, COMMON[:50], 1)
    engine.steps()
    engine.submit(1, [*COMMON[:30], 1], 1)
    assert lengths(engine.step()) == [(1, 30, 1)]
    assert engine.commands == [Truncate(0, 30)]


def test_what_another_sequence_has_already_is_not_parked_again():
    engine = Engine()
    for job in range(2):
        engine.submit(job, COMMON[:40], 3)
        engine.steps()
    assert engine.slots.parked == 1
    assert engine.slots.used == engine.slots.cached == 42


def test_what_another_has_not_computed_yet_is_parked():
    engine = Engine()
    engine.submit(0, COMMON[:40])
    engine.slots.block(0)  # so its last token is left
    engine.submit(1, COMMON[:40], 1)
    engine.steps()
    assert engine.live() == [0]
    assert engine.slots.parked == 1


def test_prompts_go_in_pieces_while_somebody_generates():
    engine = Engine(piece=10, batch=64)
    engine.submit(0, range(5))
    engine.step()
    engine.submit(1, COMMON[:150])
    assert lengths(engine.step()) == [(0, 5, 1), (1, 0, 10)]
    engine.do(engine.slots.cancel(0))
    assert lengths(engine.step()) == [(1, 10, 64)]
    engine.submit(2, range(8))
    assert lengths(engine.step()) == [(1, 74, 64)]
    assert lengths(engine.step()) == [(1, 138, 12), (2, 0, 8)]


def test_a_blocked_job_keeps_its_cells_and_gets_no_tokens():
    engine = Engine()
    engine.submit(0, range(5))
    engine.step()
    engine.slots.block(0)
    assert engine.step() == []
    assert engine.slots.used == 5
    engine.slots.unblock(0)
    assert lengths(engine.step()) == [(0, 5, 1)]


def test_others_do_not_wait_for_a_blocked_leader():
    engine = Engine()
    for job in range(2):
        engine.submit(job, [*COMMON[:100], job])
    engine.slots.block(0)
    assert [lengths(pieces) for pieces in engine.steps()][:3] == [[(0, 0, 64)], [(0, 64, 36)], [(1, 100, 1)]]
    assert engine.live() == [0]


def test_a_job_that_is_alone_runs_alone():
    engine = Engine()
    engine.submit(0, range(5))
    engine.submit(1, range(10, 15), alone=True)
    engine.submit(2, range(20, 25))
    seen = []
    while engine.step():
        seen.append(engine.live())
    assert [1, 2] not in seen
    assert [live for i, live in enumerate(seen) if live and live not in seen[:i]] == [[0], [1], [2]]


def test_a_requeued_job_is_the_next_and_goes_on_where_it_was():
    engine = Engine(slots=2)
    for job in range(3):
        engine.submit(job, range(100 * job, 100 * job + 5 + job), 6)
    for _ in range(3):
        engine.step()
    assert engine.slots.largest() == 1
    engine.do(engine.slots.requeue(1))
    pieces = engine.step()
    assert engine.live() == [0, 1]
    assert pieces[1] == Piece(1, pieces[1].seq, 0, pieces[1].tokens, True)
    assert list(pieces[1].tokens) == [*range(100, 106), 7, 7, 7]
    engine.steps()
    assert engine.left == {0: 0, 1: 0, 2: 0}


def test_pieces_of_jobs_that_have_gone_are_passed_over():
    engine = Engine()
    engine.submit(0, range(5))
    engine.submit(1, range(10, 15))
    engine.do(engine.slots.admit())
    pieces = engine.slots.plan()
    engine.do(engine.slots.failed(0))
    assert engine.slots.advance(pieces) == []
    assert engine.slots.used == 5


def test_prompts_that_cannot_fit_are_refused_with_both_numbers():
    slots = Slots(slots=1, cells=100, batch=10)
    with pytest.raises(PromptTooLong, match=r"90 tokens .* 11 .* 100") as caught:
        slots.submit(0, range(90), 11)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.prompt, error.wanted, error.cells) == (90, 11, 100)
    with pytest.raises(EmptyPrompt):
        slots.submit(0, [], 11)
    slots.submit(0, range(90), 10)
    with pytest.raises(ValueError, match="job"):
        slots.submit(0, [1], 1)
    with pytest.raises(ValueError, match="max_tokens"):
        slots.submit(1, [1], 0)
    assert slots.waiting == 1


@pytest.mark.parametrize("wrong", ["slots", "cells", "piece", "shortest", "batch", "parked", "stored", "rent"])
def test_wrong_sizes_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=wrong):
        Slots(**{"slots": 2, "cells": 10, "batch": 10} | {wrong: -1})


def test_an_engine_that_breaks_the_order_is_told():
    engine = Engine()
    engine.submit(0, range(5), 2)
    engine.do(engine.slots.admit())
    with pytest.raises(ValueError, match="tokens to compute"):
        engine.slots.sampled(0, 7)
    pieces = engine.slots.plan()
    engine.slots.advance(pieces)
    with pytest.raises(ValueError, match="pieces"):
        engine.slots.advance(pieces)
    engine.slots.sampled(0, 7)
    engine.slots.advance(engine.slots.plan())
    engine.slots.sampled(0, 7)
    for call in (lambda: engine.slots.requeue(0), lambda: engine.slots.sampled(0, 7)):
        with pytest.raises(ValueError, match="job 0"):
            call()


def test_a_step_of_sixteen_generating_jobs_costs_next_to_nothing():
    slots = Slots(slots=16, cells=16 * 600, batch=512)
    for job in range(16):
        slots.submit(job, range(1000 * job, 1000 * job + 50), 500)
    slots.admit()
    slots.advance(slots.plan())
    slots.advance(slots.plan())
    best = 1.0
    for _ in range(400):
        for job in range(16):
            slots.sampled(job, 1)
        start = time.perf_counter()
        slots.admit()
        pieces = slots.plan()
        slots.advance(pieces)
        best = min(best, time.perf_counter() - start)
        assert len(pieces) == 16
    assert best < 1e-4, f"{best * 1e6:.0f} us"


def test_the_scheduler_imports_fast_and_without_the_library():
    code = (
        "import sys, runners.worker.engines.llama.slots;"
        "sys.exit(' '.join({'llama_cpp', 'numpy', 'asyncio', 'jinja2'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ------------------------------------------------------------------------------------------- outside the cache


def test_what_stays_parked_while_others_compute_is_moved_out():
    engine = Engine(stored=1000, rent=20)
    engine.submit(0, COMMON[:50])
    engine.steps()
    engine.submit(1, range(17), 10)
    engine.step()
    assert engine.commands == []
    while not engine.commands:
        engine.step()
    assert engine.commands == [Keep(0, 0, 0, 53), Remove(0)]
    assert engine.cache.computed == 53 + 17 + 3  # 20 of them since it ended
    engine.steps()
    engine.commands.clear()
    engine.submit(2, [*COMMON[:50], 7, 7, 7, 1, 2])
    assert lengths(engine.step()) == [(2, 53, 2)]
    assert [type(command) for command in engine.commands] == [Load]


def test_only_what_is_new_is_moved_out():
    engine = Engine(stored=1000, rent=1)
    for job, turn in enumerate([COMMON[:50], [*COMMON[:50], *range(30)], [*COMMON[:50], *range(60, 100)]]):
        engine.submit(job, turn, 1)
        engine.steps()
    engine.submit(3, range(500, 540), 1)
    engine.steps()
    assert engine.slots.stored == 50 + 30 + 40


def test_nothing_is_moved_out_in_vain():
    engine = Engine(stored=40, rent=1)
    engine.submit(0, COMMON[:50])
    engine.steps()
    engine.submit(1, range(100, 130))
    engine.steps()
    assert engine.slots.parked == 2
    assert engine.do(engine.slots.tidy()) is None
    assert engine.slots.parked == 2


def test_when_nobody_is_live_all_but_the_last_is_moved_out():
    engine = Engine(stored=1000)
    for job in range(4):
        engine.submit(job, range(100 * job, 100 * job + 15), 4)
    engine.steps()
    assert engine.slots.parked == 4
    while commands := engine.slots.tidy():
        engine.do(commands)
    assert engine.slots.parked == 1
    assert engine.slots.stored == 3 * 18
    engine.submit(9, range(1000, 1020), 3)
    engine.step()
    assert engine.slots.tidy() == []


def test_a_prompt_is_loaded_only_where_all_that_comes_with_it_fits():
    engine = Engine(cells=200, stored=1000, rent=1, slots=2)
    engine.submit(0, range(150), 1)
    engine.steps()
    engine.submit(1, range(1000, 1020), 1)
    engine.steps()
    assert engine.slots.stored >= 150
    engine.submit(2, range(2000, 2040), 80)
    engine.step()
    engine.commands.clear()
    engine.submit(3, [*range(60), 5], 2)  # the entry has 150 cells, and only 80 are free
    assert (3, 0) in [(job, start) for job, start, _ in lengths(engine.step())]
    assert not any(isinstance(command, Load) for command in engine.commands)
