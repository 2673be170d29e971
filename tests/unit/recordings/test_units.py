from __future__ import annotations

import pytest

from raypipe.recordings.units import decode_field, volts_per


@pytest.mark.parametrize(
    ("factor", "spellings"),
    [
        (1.0, ("V", "v", "Volt", "volts", " V ", "[V]")),
        (1e-3, ("mV", "mv", "millivolt", "milliVolts", "m V")),
        (
            1e-6,
            (
                "uV", "uv", "UV", "\u00b5V", "\u03bcV", "\u00c2\u00b5V", "\u00ce\u00bcV", "\u00e6V", "microV", "MicroV",
                "microvolt", "microvolts", "Micro-Volts", "micro volts", "mikroV", "(uV)", "uV.", "{uV}", "'uV'",
                "\u00b5Volt", "\u039cV",
            ),
        ),
        (1e-9, ("nV", "NV", "nanovolt", "nano V")),
        (1e-12, ("pV", "picovolts")),
    ],
)  # fmt: skip
def test_spellings_of_volts(factor, spellings):
    assert {spelling: volts_per(spelling) for spelling in spellings} == dict.fromkeys(spellings, factor)


@pytest.mark.parametrize(
    "unit",
    [
        "",
        " ",
        "n/a",
        "?V",
        "MV",
        "Mv",
        "MVolts",
        "[MV]",
        "kV",
        "uVolt/s",
        "uV^2",
        "uV/Hz",
        "dB",
        "%",
        "bpm",
        "C",
        "Ohm",
        "u",
        "mm",
        "x",
        "V*s",
    ],
)
def test_what_is_no_known_voltage(unit):
    assert volts_per(unit) is None


def test_header_fields_are_utf8_or_latin1():
    assert decode_field("\u03bcV".encode() + b"     ") == "\u03bcV"
    assert decode_field(b"\xb5V      ") == "\u00b5V"
    assert decode_field(b"uV\0\0\0\0\0\0") == "uV"
    assert decode_field("e\u0301".encode()) == "\u00e9"


@pytest.mark.parametrize("unit", ["MV", "Mv", "MVolts", "MVOLT", "PV", "Pvolts"])
def test_mega_and_milli_are_not_guessed(unit):
    assert volts_per(unit) is None
