"""The table of instructions and their oracles; the cases of float arithmetic are in tables.py."""

from __future__ import annotations

import math

from .tables import (
    NAN,
    Case,
    clamped_integer,
    converted,
    field,
    float_cases,
    ftz_cases,
    inserted,
    larger,
    packed_cases,
    permuted,
    rounded,
    signed,
    smaller,
    to_bits,
    truncated,
    unordered,
)


def shift_cases() -> list[Case]:
    return [
        Case("shl.b32 D, A, B", "b32 b32 u32", lambda a, n: a << n if n < 32 else 0),
        Case("shl.b64 D, A, B", "b64 b64 u32", lambda a, n: a << n if n < 64 else 0),
        Case("shr.u32 D, A, B", "u32 u32 u32", lambda a, n: a >> min(n, 99)),
        Case("shr.s32 D, A, B", "s32 s32 u32", lambda a, n: a >> min(n, 99)),
        Case("shr.s64 D, A, B", "s64 s64 u32", lambda a, n: a >> min(n, 99)),
        Case("shr.u16 D, A, B", "u16 u16 u32", lambda a, n: a >> min(n, 99)),
        Case(
            "shf.l.wrap.b32 D, A, B, C",
            "b32 b32 b32 u32",
            lambda a, b, n: (b << 32 | a) << (n & 31) >> 32,
        ),
        Case(
            "shf.r.wrap.b32 D, A, B, C",
            "b32 b32 b32 u32",
            lambda a, b, n: (b << 32 | a) >> (n & 31),
        ),
        Case(
            "shf.r.clamp.b32 D, A, B, C",
            "b32 b32 b32 u32",
            lambda a, b, n: (b << 32 | a) >> min(n, 32),
        ),
    ]


def field_cases() -> list[Case]:
    cases = []
    for bits in (32, 64):
        for kind in "us":
            t = f"{kind}{bits}"
            cases.append(
                Case(
                    f"bfe.{t} D, A, B, C",
                    f"{t} {t} u32 u32",
                    lambda a, p, n, bits=bits, kind=kind: field(a, p, n, bits, kind == "s"),
                )
            )
    return [
        *cases,
        Case("bfi.b32 D, A, B, C, 7", "b32 b32 b32 u32", lambda a, b, p: inserted(a, b, p, 7, 32)),
        Case(
            "bfi.b64 D, A, B, 60, C", "b64 b64 b64 u32", lambda a, b, n: inserted(a, b, 60, n, 64)
        ),
        Case("prmt.b32 D, A, B, C", "b32 b32 b32 b32", permuted),
        Case(
            "lop3.b32 D, A, B, C, 0xE8",
            "b32 b32 b32 b32",
            lambda a, b, c: a & b | a & c | b & c,
        ),
        Case("lop3.b32 D, A, B, C, 0x96", "b32 b32 b32 b32", lambda a, b, c: a ^ b ^ c),
        Case("popc.b32 D, A", "u32 b32", lambda a: a.bit_count()),
        Case("popc.b64 D, A", "u32 b64", lambda a: a.bit_count()),
        Case("clz.b32 D, A", "u32 b32", lambda a: 32 - a.bit_length()),
        Case("clz.b64 D, A", "u32 b64", lambda a: 64 - a.bit_length()),
        Case("brev.b32 D, A", "b32 b32", lambda a: int(f"{a:032b}"[::-1], 2)),
        Case("bfind.u32 D, A", "u32 u32", lambda a: a.bit_length() - 1),
        Case("bfind.s32 D, A", "u32 s32", lambda a: (~a if a < 0 else a).bit_length() - 1),
    ]


def integer_cases() -> list[Case]:
    cases = []
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        two, bits = f"{kind} {kind} {kind}", int(kind[1:])
        cases += [
            Case(f"add.{kind} D, A, B", two, lambda a, b: a + b),
            Case(f"sub.{kind} D, A, B", two, lambda a, b: a - b),
            Case(f"mul.lo.{kind} D, A, B", two, lambda a, b: a * b),
            Case(f"mul.hi.{kind} D, A, B", two, lambda a, b, bits=bits: a * b >> bits),
            Case(f"mad.lo.{kind} D, A, B, C", f"{two} {kind}", lambda a, b, c: a * b + c),
            Case(f"min.{kind} D, A, B", two, min),
            Case(f"max.{kind} D, A, B", two, max),
            Case(f"div.{kind} D, A, B", two, truncated),
            Case(f"rem.{kind} D, A, B", two, lambda a, b: a - b * truncated(a, b)),
        ]
    for narrow, wide in (("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")):
        types = f"{wide} {narrow} {narrow}"
        cases += [
            Case(f"mul.wide.{narrow} D, A, B", types, lambda a, b: a * b),
            Case(f"mad.wide.{narrow} D, A, B, C", f"{types} {wide}", lambda a, b, c: a * b + c),
        ]
    return [
        *cases,
        Case("mad.hi.u32 D, A, B, C", "u32 u32 u32 u32", lambda a, b, c: (a * b >> 32) + c),
        Case("neg.s32 D, A", "s32 s32", lambda a: -a),
        Case("abs.s64 D, A", "s64 s64", abs),
        Case("not.b16 D, A", "b16 b16", lambda a: ~a),
        Case("and.b64 D, A, B", "b64 b64 b64", lambda a, b: a & b),
        Case("xor.b32 D, A, B", "b32 b32 b32", lambda a, b: a ^ b),
        Case("or.pred D, A, B", "pred pred pred", lambda a, b: a | b),
        Case("not.pred D, A", "pred pred", lambda a: 1 - a),
        Case("selp.b32 D, A, B, C", "b32 b32 b32 pred", lambda a, b, c: a if c else b),
        Case(
            "{ .reg .b32 t; add.cc.u32 t, A, B; addc.u32 D, C, 0; }",
            "u32 u32 u32 u32",
            lambda a, b, c: c + (a + b >> 32),
        ),
        Case(
            "{ .reg .b32 t; sub.cc.u32 t, A, B; subc.u32 D, C, 0; }",
            "u32 u32 u32 u32",
            lambda a, b, c: c - (a < b),
        ),
        Case(
            "{ .reg .b32 t; mad.lo.cc.u32 t, A, B, C; madc.hi.u32 D, A, B, 7; }",
            "u32 u32 u32 u32",
            lambda a, b, c: (a * b >> 32) + 7 + ((a * b & 0xFFFFFFFF) + c >> 32),
        ),
        Case(
            "{ mov.b32 {t0, t1}, A; mov.b32 D, {t1, t0}; }", "b32 b32", lambda a: a << 16 | a >> 16
        ),
    ]


def comparison_cases() -> list[Case]:
    cases = []
    tests = {
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
    }
    for name, test in tests.items():
        for kind in ("s32", "u64", "s16"):
            cases.append(Case(f"setp.{name}.{kind} D, A, B", f"pred {kind} {kind}", test))
        for kind in ("f32", "f64", "bf16", "f16"):
            types = f"pred {kind} {kind}"
            ordered = lambda a, b, test=test: test(a, b) and not unordered(a, b)  # noqa: E731
            either = lambda a, b, test=test: test(a, b) or unordered(a, b)  # noqa: E731
            cases.append(Case(f"setp.{name}.{kind} D, A, B", types, ordered))
            cases.append(Case(f"setp.{name}u.{kind} D, A, B", types, either))
    three = "pred f32 f32 pred"
    return [
        *cases,
        Case("setp.nan.f32 D, A, B", "pred f32 f32", unordered),
        Case("setp.num.f32 D, A, B", "pred f32 f32", lambda a, b: not unordered(a, b)),
        Case("setp.lt.and.f32 D, A, B, C", three, lambda a, b, c: (a < b) and c),
        Case("setp.lt.or.f32 D, A, B, !C", three, lambda a, b, c: (a < b) or not c),
        Case("setp.lt.xor.f32 D|q, A, B, C", three, lambda a, b, c: (a < b) ^ c),
        Case("setp.lo.u32 q|D, A, B", "pred u32 u32", lambda a, b: a >= b),
    ]


def conversion_cases() -> list[Case]:
    cases = []
    modes = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    for name, mode in modes.items():
        for to in ("s32", "u32", "s64", "u64", "s8", "u16"):
            bits = int(to[1:])
            low, high = (
                (-(1 << bits - 1), (1 << bits - 1) - 1) if to[0] == "s" else (0, (1 << bits) - 1)
            )
            register = to if bits > 8 else "s16"
            for source in ("f32", "f64"):
                nan = 1 << bits - 1 if source == "f64" or bits == 64 else 0
                nan = signed(nan, bits) if to[0] == "s" else nan
                cases.append(
                    Case(
                        f"cvt.{name}.{to}.{source} D, A",
                        f"{register} {source}",
                        clamped_integer(mode, low, high, nan),
                    )
                )
    for to in ("f16", "bf16", "f32", "f64"):
        for source in ("f16", "bf16", "f32", "f64", "s32", "u16", "u32", "s64", "u64"):
            if to == source or (to in ("f16", "bf16") and source in ("s64", "u64")):
                continue
            exact = {
                ("f32", "f16"),
                ("f32", "bf16"),
                ("f64", "f32"),
                ("f64", "f16"),
                ("f64", "bf16"),
            }
            mode = "" if (to, source) in exact else ".rn"
            cases.append(Case(f"cvt{mode}.{to}.{source} D, A", f"{to} {source}", converted(to)))
    for mode in ("rz", "rm", "rp"):
        cases.append(Case(f"cvt.{mode}.f32.f64 D, A", "f32 f64", converted("f32", mode)))
        cases.append(Case(f"cvt.{mode}.f32.s32 D, A", "f32 s32", converted("f32", mode)))
        cases.append(Case(f"cvt.{mode}.f16.f32 D, A", "f16 f32", converted("f16", mode)))
    return [
        *cases,
        Case("cvt.rz.bf16.f32 D, A", "bf16 f32", converted("bf16", "rz")),
        Case(
            "cvt.rn.bf16x2.f32 D, A, B",
            "b32 f32 f32",
            lambda a, b: pair("bf16", converted("bf16")(a), converted("bf16")(b)),
        ),
        Case("cvt.s64.s32 D, A", "s64 s32", lambda a: a),
        Case("cvt.u64.u32 D, A", "u64 u32", lambda a: a),
        Case("cvt.u32.u64 D, A", "u32 u64", lambda a: a),
        Case("cvt.s32.s8 D, A", "s32 b16", lambda a: signed(a, 8)),
        Case("cvt.sat.u8.s32 D, A", "u32 s32", lambda a: min(max(a, 0), 255)),
        Case("cvt.sat.s16.u64 D, A", "s16 u64", lambda a: min(a, 32767)),
        Case("cvt.rni.f32.f32 D, A", "f32 f32", lambda a: whole(a)),
        Case(
            "cvt.sat.f32.f32 D, A",
            "f32 f32",
            lambda a: min(a, 1.0) if a > 0 else 0.0,
        ),
    ]


def whole(a: float) -> float:
    return math.copysign(float(round(a)), a) if math.isfinite(a) else a


def pair(kind: str, upper: float, lower: float) -> int:
    return to_bits(upper, kind) << 16 | to_bits(lower, kind)


def other_float_cases() -> list[Case]:
    add = rounded("f32", lambda a, b: a + b, lambda a, b: a + b)
    fma = rounded("f32", lambda a, b, c: a * b + c, lambda a, b, c: a * b + c)
    nan_first = lambda f: lambda a, b: NAN if unordered(a, b) else f(a, b)  # noqa: E731
    return [
        *ftz_cases(),
        *packed_cases(),
        Case("add.f32.bf16 D, A, B", "f32 bf16 f32", add),
        Case("sub.rn.f32.bf16 D, A, B", "f32 bf16 f32", lambda a, b: add(a, -b)),
        Case("fma.rn.f32.bf16 D, A, B, C", "f32 bf16 bf16 f32", fma),
        Case("min.NaN.f32 D, A, B", "f32 f32 f32", nan_first(smaller)),
        Case("max.NaN.f32 D, A, B", "f32 f32 f32", nan_first(larger)),
        Case("max.NaN.bf16 D, A, B", "bf16 bf16 bf16", nan_first(larger)),
        Case("max.f32 D, A, B, C", "f32 f32 f32 f32", lambda a, b, c: larger(larger(a, b), c)),
        Case(
            "min.abs.f32 D, A, B, C",
            "f32 f32 f32 f32",
            lambda a, b, c: smaller(smaller(abs(a), abs(b)), abs(c)),
        ),
        Case("neg.bf16 D, A", "bf16 bf16", lambda a: -a),
        Case("abs.f64 D, A", "f64 f64", abs),
        Case("copysign.f32 D, A, B", "f32 f32 f32", lambda a, b: math.copysign(b, a)),
        Case("testp.subnormal.f32 D, A", "pred f32", lambda a: 0 < abs(a) < 2.0**-126),
    ]


CASES = [
    *shift_cases(),
    *field_cases(),
    *integer_cases(),
    *comparison_cases(),
    *conversion_cases(),
    *other_float_cases(),
    *(case for kind in ("f16", "bf16", "f32", "f64") for case in float_cases(kind)),
]
