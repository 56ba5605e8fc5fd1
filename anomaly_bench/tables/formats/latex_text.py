"""Text as LaTeX: special characters, letters and accents."""

from __future__ import annotations

import re
import unicodedata

from anomaly_bench.tables.table import safe_text

_SPECIAL = {
    **{char: f"\\{char}" for char in "{}$&#_%"},
    **{char: f"{{{char}}}" for char in "[*"},  # after a line break they would be its argument or its star
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': "{''}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"−": "$-$", "–": r"{\textendash}", "—": r"{\textemdash}", "’": "'", "×": r"$\times$", "±": r"$\pm$"},
    **{
        "⁶": "$^6$",
        "→": r"$\rightarrow$",
        "µ": r"{\textmu}",
        "μ": r"{\textmu}",
        "½": r"{\textonehalf}",
        "¼": r"{\textonequarter}",
    },
    **{"¾": r"{\textthreequarters}", "°": r"{\textdegree}", "§": r"{\S}", "©": r"{\textcopyright}"},
    **{"²": r"{\texttwosuperior}", "³": r"{\textthreesuperior}", "¹": r"{\textonesuperior}", "€": r"{\texteuro}"},
    **{"ß": r"{\ss}", "Ł": r"{\L}", "ł": r"{\l}", "Ø": r"{\O}", "ø": r"{\o}", "Æ": r"{\AE}", "æ": r"{\ae}"},
    **{"Œ": r"{\OE}", "œ": r"{\oe}", "ı": r"{\i}", "…": r"{\ldots}"},
    **dict(zip("‘“”„", ("`", "``", "''", ",,"), strict=True)),
    **dict(zip("ﬀﬁﬂ", ("ff", "fi", "fl"), strict=True)),
}
_ACCENTS = dict(
    zip(
        "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0323\u0327\u0331",
        "`'^~=u.\"rHvdcb",
        strict=True,
    )
)


def latex_text(text: str) -> str:
    """Escaped text; a character without a glyph in the default fonts becomes its code point, U+6F22."""
    composed = unicodedata.normalize("NFC", safe_text(text))
    escaped = "".join(map(_letter, re.findall(rf".[{''.join(_ACCENTS)}]*", composed)))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens are no dash


def _letter(letter: str) -> str:
    """A character with combining accents."""
    base, *accents = list(letter if letter in _SPECIAL else unicodedata.normalize("NFD", letter))
    if letter in _SPECIAL or not set(accents) <= set(_ACCENTS) or not (base.isascii() or base in _SPECIAL):
        return "".join(_SPECIAL.get(char) or _coded(char) for char in letter)
    if len(accents) == 1 and len(letter) == 1 and letter <= "ſ":
        return letter  # inputenc knows it
    made = _SPECIAL.get(base, base)
    for accent in accents:
        made = f"{{\\{_ACCENTS[accent]}{{{made}}}}}"
    return made


def _coded(char: str) -> str:
    return char if char.isascii() else f"U+{ord(char):04X}"
