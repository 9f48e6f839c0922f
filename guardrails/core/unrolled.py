"""The hot shapes, plain and async, written out for each number of gates.

A loop over the gates costs more than most gates do, and so does a frame for a strategy that has nothing to do. So, as
`dataclasses` does for methods, the source of the wrapper is put together from the pattern below and compiled once for
each variant. What it says for two gates, the second of which interrupts, inside a strategy that recovers::

    async def guarded(*args, **kwargs):              # or fn's own parameters, if no guard reads the call
        if kwargs or not LEAST <= len(args) <= MOST: # the outermost only, with these: wrong arguments reach no gate
            bind(*args, **kwargs)
        if FURTHER.made and number() != 1:           # a strategy that numbers attempts only, in one beyond the first
            return await first(*args, **kwargs)      # of another call: this wrapper, once more, as a first attempt
        if EVENTS.sinks:                             # the outermost only: one look, and nothing else if nobody listens
            return await observed(*args, **kwargs)   # this pipeline, once more, which announces the call
        tally()                                      # if the strategy counts calls
        call = Call(args, kwargs)                    # or UNREAD
        stage = 0                                    # gates entered
        try:
            ticket_0 = try_enter_0(call)
            if ticket_0 is None:
                ticket_0 = await enter_0(call)
            stage = 1
            ticket_1 = ...
            stage = 2
            began = now()                            # inside a deadline only: see `drive.late_verdict`. If the deadline
                                                     # is one of the gates, after a wait: else it began with that
            result = await fn(*args, **kwargs)
            outcome = SUCCESS if type(result) in VALUES else judge_result(result_verdict, result)
            own_1 = outcome if failure_if_of_1(ticket_1) is None else own_verdict_1(ticket_1, result, outcome)
                                                     # only of a gate that is judged apart
        except BaseException as exc:
            if stage == 0: held = []                 # refused at the door: nobody holds anything
            elif stage == 1: held = [(gate_0, ticket_0)]
            elif stage == 2: held = [(gate_0, ticket_0), (gate_1, ticket_1)]
            truth = leave(held, exc, verdict if stage == 2 else not_reached)
            outcome, result = judged(truth), None    # without a strategy: not asked, and raised always
            if not isinstance(truth, Exception) or outcome.kind not in KINDS:    # what the strategy recovers from
                try:
                    if truth is exc: raise
                    raise truth from exc
                finally:
                    del truth, outcome               # the traceback holds this frame: a reference cycle
        else:
            disarm_1(ticket_1, None)
            settle_1(ticket_1, own_1)                # each in a `try`, which costs nothing while it holds; if it does
            settle_0(ticket_0, outcome)              # anything at all
            if outcome.kind not in KINDS:            # without a strategy: always
                return result
        try:
            return await recover(call_of(args, kwargs), outcome, result, partial(again, *args, **kwargs))
        finally:
            del outcome

Only numbers go into the source; functions and gates come in as globals of the compiled code, and the names of
parameters as `guardrails.core.signature` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

from guardrails.core import attempts, outcome
from guardrails.core.guard import UNREAD, Call, Gate, Strategy
from guardrails.core.signature import Shape, fitted, shape_of, span_of

#: Types whose values cannot be a response with a status: the default verdict on them is known.
_VALUES = frozenset({type(None), bool, int, float, str, bytes, bytearray, list, dict, tuple, set, frozenset})


def compile_guarded(
    fn: Callable[..., Any],
    gates: Sequence[Gate],
    *,
    is_async: bool,
    plain: bool,
    tools: dict[str, Any],
    strategy: Strategy | None = None,
    observed: Callable[..., Any] | None = None,
    own: Mapping[Gate, Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
    """The wrapper of `fn` behind `gates` (outermost first), inside `strategy`.

    Args:
        fn: what is guarded.
        gates: none, or more.
        is_async: whether `fn` gives an awaitable.
        plain: whether values of the plain types are successes without asking.
        tools: the functions that the pattern names, and the pipeline's verdicts.
        strategy: one that recovers, directly outside the gates.
        observed: called in place of all this while there are listeners of events.
        own: the verdicts on results of gates that are not judged as the pipeline is.
    """
    own = own or {}
    names = {
        "fn": fn,
        "Call": Call,
        "UNREAD": UNREAD,
        "SUCCESS": outcome.SUCCESS,
        "VALUES": _VALUES,
        "partial": functools.partial,
        "observed": observed,
        "FURTHER": attempts.FURTHER,
        "number": attempts.number,
        **tools,
    }
    names["LEAST"], names["MOST"] = span_of(tools.get("bind"))
    for number, gate in enumerate(gates):
        names[f"gate_{number}"] = gate
        names[f"try_enter_{number}"] = gate.try_enter
        names[f"enter_{number}"] = gate.enter if is_async else gate.enter_blocking
        names[f"settle_{number}"] = gate.settle
        names[f"disarm_{number}"] = gate.disarm
        names[f"failure_if_of_{number}"] = gate.failure_if_of
        names[f"own_verdict_{number}"] = own.get(gate)
    if strategy is not None:
        names["tally"] = strategy.tally
        names["KINDS"] = strategy.recovers_from
        names["recover"] = strategy.recover if is_async else strategy.recover_blocking
        names["again"] = (
            compile_guarded(fn, gates, is_async=is_async, plain=plain, tools=tools, own=own) if gates else fn
        )
    reads_call = any(gate.reads_call for gate in gates)
    shape = None if reads_call or (strategy is not None and strategy.reads_call) else shape_of(fn)
    code = _code(
        tuple((gate.interrupts, gate.settles, gate in own) for gate in gates),
        shape,
        is_async=is_async,
        reads_call=reads_call,
        recovers=strategy is not None,
        tallies=strategy is not None and strategy.tally is not None,
        numbers=strategy is not None and strategy.numbers,
        announces=observed is not None,
        plain=plain,
        binds=shape is None and tools.get("bind") is not None,
        timed=tools.get("late") is not None,
        within=all(gate in gates for gate in tools.get("deadlines", ())),
    )
    guarded = fitted(code, fn, shape, names)
    if strategy is not None and strategy.numbers:
        names["first"] = functools.partial(attempts.at if is_async else attempts.at_blocking, 1, guarded)
    return guarded


@functools.lru_cache(1024)
def _code(
    kinds: tuple[tuple[bool, bool, bool], ...],
    shape: Shape | None,
    *,
    is_async: bool,
    reads_call: bool,
    recovers: bool,
    tallies: bool,
    numbers: bool,
    announces: bool,
    plain: bool,
    binds: bool,
    timed: bool,
    within: bool,
) -> CodeType:
    wait = "await " if is_async else ""
    count = len(kinds)
    parameters, arguments = ("*args, **kwargs",) * 2 if shape is None else (shape.parameters, shape.arguments)
    lines = [f"{'async ' if is_async else ''}def guarded({parameters}):"]
    if binds:
        lines += ["    if kwargs or not LEAST <= len(args) <= MOST:", "        bind(*args, **kwargs)"]
    if numbers:
        lines += ["    if FURTHER.made and number() != 1:", f"        return {wait}first({arguments})"]
    if announces:
        lines += ["    if EVENTS.sinks:", f"        return {wait}observed({arguments})"]
    if tallies:
        lines.append("    tally()")
    lines += ["    call = Call(args, kwargs)" if reads_call else "    call = UNREAD", "    stage = 0"]
    lines += ["    began = 0.0", "    try:"] if timed and within else ["    try:"]
    for number in range(count):
        lines += [
            f"        ticket_{number} = try_enter_{number}(call)",
            f"        if ticket_{number} is None:",
            f"            ticket_{number} = {wait}enter_{number}(call)",
            *(["            began = now()"] if timed and within else []),
            f"        stage = {number + 1}",
        ]
    if timed and not within:
        lines.append("        began = now()")
    lines.append(f"        result = {wait}fn({arguments})")
    if not is_async:
        lines += [
            "        known = type(result) in VALUES",
            "        if not known and (type(result) in LAZY or hasattr(type(result), '__await__')):",
            "            refuse_lazy(fn, result)",
        ]
    is_plain = "type(result) in VALUES" if is_async else "known"
    judged = "judge_result(result_verdict, result)"
    lines.append(f"        outcome = {f'SUCCESS if {is_plain} else {judged}' if plain else judged}")
    lines += [
        f"        own_{number} = outcome if failure_if_of_{number}(ticket_{number}) is None "
        f"else own_verdict_{number}(ticket_{number}, result, outcome)"
        for number, (_, _, judges) in enumerate(kinds) if judges
    ]  # fmt: skip
    lines += ["    except BaseException as exc:", *_failed(count, recovers=recovers, timed=timed), "    else:"]
    if not count:
        lines.append("        pass")
    for number in reversed(range(count)):
        interrupts, settles, judges = kinds[number]
        if interrupts:
            lines.append(f"        disarm_{number}(ticket_{number}, None)")
        if settles:
            lines += [
                "        try:",
                f"            settle_{number}(ticket_{number}, {f'own_{number}' if judges else 'outcome'})",
                "        except BaseException as bug:",
                f"            unsettled(gate_{number}, bug, [{_held(number)}])",
            ]
    if not recovers:
        lines.append("        return result")
    else:
        call, again = ("args, kwargs" if shape is None else "(), {}"), (f", {arguments}" if arguments else "")
        lines += [
            "        if outcome.kind not in KINDS:",
            "            return result",
            "    try:",
            f"        return {wait}recover(call_of({call}), outcome, result, partial(again{again}))",
            "    finally:",
            "        del outcome",
        ]
    module = compile("\n".join(lines), "<guardrails: unrolled>", "exec")
    return next(const for const in module.co_consts if isinstance(const, CodeType))


def _held(count: int) -> str:
    return ", ".join(f"(gate_{number}, ticket_{number})" for number in range(count))


def _failed(count: int, *, recovers: bool, timed: bool) -> list[str]:
    lines = []
    if not recovers:
        lines += ["        if stage == 0:", "            raise"]
    for stage in range(count + 1):
        lines.append(f"        {'el' if stage else ''}if stage == {stage}: held = [{_held(stage)}]")
    verdict = "late(began)" if timed else "verdict"
    lines.append(f"        truth = leave(held, exc, {verdict} if stage == {count} else not_reached)")
    deep, names = "        ", "truth"
    if recovers:
        lines += ["        outcome = judged(truth)", "        result = None"]
        lines.append("        if not isinstance(truth, Exception) or outcome.kind not in KINDS:")
        deep, names = "            ", "truth, outcome"
    lines += [
        f"{deep}try:",
        f"{deep}    if truth is exc:",
        f"{deep}        raise",
        f"{deep}    raise truth from exc",
        f"{deep}finally:",
        f"{deep}    del {names}",
    ]
    if recovers:
        lines.append("        del truth, held")
    return lines
