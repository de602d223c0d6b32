"""Takes personal data out of texts before they may be logged.

Finders look at a shadow of the text: as long as it, with full-width and other digits, letters and signs as their plain
ASCII ones, and with what is masked already as a run of _DONE. Each finder decides from the characters of a finding and
from those that touch it; _DONE counts as a letter and as a digit. So masking a masked text changes nothing. Every
pattern is bounded, so that work grows with the length of the text only.

What is valid is known by libraries that follow the registries: python-stdnum (check digits, IBAN structures, numbers of
the Social Security Administration) and phonenumbers (Google's libphonenumber; numbering plans).
"""

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache

import phonenumbers
from stdnum import iban, luhn, numdb
from stdnum.cn import ric
from stdnum.iso7064 import mod_11_2
from stdnum.us import ssn

Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]

_DONE = "\uffff"  # no character: U+FFFF is set aside for use inside programs


def _plain() -> dict[int, str]:
    """Return what full-width forms, digits of other scripts, dashes and spaces are in ASCII, one for one."""
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    table |= dict.fromkeys((*range(8208, 8214), 8722), "-")
    table |= dict.fromkeys((160, *range(8192, 8203), 8239, 12288), " ")
    digits = (code for code in range(0x660, 0xABFA) if chr(code).isdecimal())
    return table | {code: str(unicodedata.decimal(chr(code))) for code in digits}


_PLAIN = _plain()

# What may not touch a number: it would be part of something longer, of a decimal, of a name like ISO-4217, of a price.
_BEFORE = rf"(?<![0-9A-Za-z_{_DONE}])(?<![0-9A-Za-z{_DONE}]-)(?<![0-9{_DONE}]\.)(?<![$€£¥])"
_AFTER = re.compile(rf"(?![0-9A-Za-z_{_DONE}])(?![.-][0-9{_DONE}])")
_GROUP = re.compile(r"[0-9A-Za-z]+")

_NOT_PLAIN = re.compile(r"[^0-9A-Za-z]")


def _number_finder(pattern: str, valid: Callable[[str], bool], *, unless: re.Pattern[str] | None = None) -> Finder:
    """Return a finder of numbers in groups: it may end after any group, and the longest valid one is taken.

    `valid` gets digits and letters alone. Nothing is found where `unless` matches the 24 characters before it.
    """
    candidate = re.compile(f"{_BEFORE}(?=({pattern}))")  # a lookahead, so that a failure hides nothing behind its start

    def find(shadow: str) -> Iterator[Span]:
        done = 0
        for match in candidate.finditer(shadow):
            begin, longest = match.span(1)
            if begin < done or (unless is not None and unless.search(shadow[max(0, begin - 24) : begin])):
                continue
            for group in reversed(list(_GROUP.finditer(shadow, begin, longest))):
                end = group.end()
                if _AFTER.match(shadow, end) and valid(_NOT_PLAIN.sub("", shadow[begin:end])):
                    yield begin, end
                    done = end
                    break

    return find


# The lengths and first digits that issuers use (ISO/IEC 7812); an IMEI or a bar code passes the check digit, too.
_CARD = re.compile(
    r"3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|35[0-9]{14}|2[2-7][0-9]{14}"
    r"|4[0-9]{15}(?:[0-9]{3})?|[56][0-9]{15,18}|9558[0-9]{15}"
)


def _is_card(digits: str) -> bool:
    return _CARD.fullmatch(digits) is not None and luhn.is_valid(digits)


@cache
def _iban_length(country: str) -> int:
    """Return how long IBANs of a country are, 0 where there are none."""
    structure = (
        numdb.get("iban").info(country)[0][1].get("bban", "")
    )  # 4!a6!n8!n: letters and digits, each with a number
    return 4 + sum(map(int, re.findall(r"[0-9]+", structure))) if structure else 0


def _is_iban(number: str) -> bool:
    return len(number) == _iban_length(number[:2].upper()) and iban.is_valid(number, check_country=False)


def _is_resident_id(number: str) -> bool:
    """Check digit (GB 11643) and date of birth; not the county, whose code may have been given up since."""
    try:
        ric.get_birth_date(number)
    except ValueError:
        return False
    return mod_11_2.is_valid(number.upper())


@cache
def _numbering_plans(country_code: int) -> list[re.Pattern[str]]:
    """Return patterns of the numbers in use behind a country code."""
    regions = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(country_code, ())
    metadata = [phonenumbers.PhoneMetadata.metadata_for_region_or_calling_code(country_code, each) for each in regions]
    plans = [each.general_desc for each in metadata if each is not None]
    return [re.compile(each.national_number_pattern) for each in plans if each and each.national_number_pattern]


def _is_phone(digits: str) -> bool:
    """Say whether it is a country code and a number of that country's plan, perhaps with the 0 of calls within it."""
    number = digits.removeprefix("00")
    return 8 <= len(number) <= 16 and any(
        plan.fullmatch(number, begin) or (number[begin] == "0" and plan.fullmatch(number, begin + 1))
        for begin in (1, 2, 3)
        for plan in _numbering_plans(int(number[:begin]))
    )


def _is_chinese_mobile(digits: str) -> bool:
    return _is_phone("86" + digits[-11:])


_SECTION = re.compile(
    r"(?:\b(?:version|ver|release|firmware|build|rev|section|chapter|clause)\b\.?|版本号?|第|章|节|§)[ :=]{0,3}$",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"(?:\b(?:order|invoice|ticket|tracking|serial|ref|sku)\b|#|单号|编号|流水号|序列号|订单|运单)[^0-9\n]{0,8}$",
    re.IGNORECASE,
)
_IPV4 = re.compile(
    rf"(?<![0-9A-Za-z_{_DONE}])(?<![0-9{_DONE}]\.)(?<![A-Za-z{_DONE}][/-])"
    rf"[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}(?![0-9A-Za-z_{_DONE}])(?!\.[0-9{_DONE}])(?!-[A-Za-z{_DONE}])"
)
_IPV6 = re.compile(rf"(?<![0-9A-Fa-f:.])[0-9A-Fa-f:.]{{6,}}+(?!{_DONE})")
_IPV6_USUAL = re.compile(r"[0-9A-Fa-f]{4}:|::ffff:|[0-9A-Fa-f:]+:[0-9]+\.", re.IGNORECASE)


def _find_ipv4(shadow: str) -> Iterator[Span]:
    for match in _IPV4.finditer(shadow):
        begin, end = match.span()
        if _is_address(match[0]) and not _SECTION.search(shadow[max(0, begin - 24) : begin]):
            yield begin, end


def _find_ipv6(shadow: str) -> Iterator[Span]:
    for match in _IPV6.finditer(shadow):
        begin, end = match.span()
        if begin and shadow[begin - 1] == _DONE:
            continue
        if begin and (shadow[begin - 1].isalnum() or shadow[begin - 1] == "_"):  # "node:2001:…" begins after the word
            begin = shadow.find(":", begin, end) + 1
        elif shadow[begin] == ":" and shadow[begin + 1] != ":":
            begin += 1
        while end > begin and (shadow[end - 1] == "." or (shadow[end - 1] == ":" and shadow[end - 2] != ":")):
            end -= 1
        address = shadow[begin:end]
        # `a::b` is a name in C++ and Rust, `1::2` a slice in Python: addresses in use begin with four digits.
        if end - begin <= 45 and _IPV6_USUAL.match(address) and _AFTER.match(shadow, end) and _is_address(address):
            yield begin, end


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    # eight times two digits is a hardware address (EUI-64)
    return ":" not in text or {len(group) for group in text.split(":")} != {2}


_EMAIL_CHARACTERS = r"0-9A-Za-zÀ-ÖØ-öø-ɏ_%+\-"
_LABEL_CHARACTERS = r"0-9A-Za-zÀ-ÖØ-öø-ɏ"
_EMAIL = re.compile(
    rf"(?<![{_EMAIL_CHARACTERS}{_DONE}])(?<!://)[{_EMAIL_CHARACTERS}]{{1,64}}+(?:[.'][{_EMAIL_CHARACTERS}]{{1,64}}+){{0,8}}+@"
    r"(?![0-9]+x\.|[0-9]+\.[0-9])"  # icon@2x.png, package@1.2.3
    rf"(?:[{_LABEL_CHARACTERS}][{_LABEL_CHARACTERS}-]{{0,62}}\.){{1,8}}(?:xn--[0-9A-Za-z-]{{2,59}}|[A-Za-z]{{2,24}})"
    rf"(?![0-9A-Za-z_{_DONE}])"
)
# Up to the last @ before the path; without a colon a name that is long enough for a token.
_USER_INFO = re.compile(
    rf"(?<![0-9A-Za-z+.{_DONE}-])[A-Za-z][0-9A-Za-z+.-]{{1,30}}+://"
    rf"([^\s/?#\"'<>:{_DONE}]{{0,128}}:[^\s/?#\"'<>{_DONE}]{{1,256}}|[^\s/?#\"'<>:{_DONE}]{{20,256}})@"
)
_TELLING_NAMES = (
    r"(?:access|refresh|id|auth|client|private)?token|(?:client|shared)?secret|password|passwd|passphrase|pwd"
    r"|(?:api|access|private|secret)?key|auth|sig|signature|credential|session|session[_-]?id"
)
_SECRET = re.compile(
    rf"[?&;](?:[0-9A-Za-z]{{1,20}}[_-]){{0,3}}(?:{_TELLING_NAMES})=([^\s&#;\"'<>()\[\]{{}}，。；、{_DONE}]+)",
    re.IGNORECASE,
)


def _pattern_finder(pattern: re.Pattern[str], group: int = 0) -> Finder:
    return lambda shadow: (match.span(group) for match in pattern.finditer(shadow))


_GROUPED_SSN = r"[0-9]{3}-[0-9]{2}-[0-9]{4}"
_LOOSE_SSN = r"[0-9]{3}[ -]?[0-9]{2}[ -]?[0-9]{4}"


def _find_named_ssn(shadow: str) -> Iterator[Span]:
    """Find what is called a social security number and is written without hyphens."""
    for match in _NAMED_SSN.finditer(shadow):
        if _AFTER.match(shadow, match.end()) and ssn.is_valid(_NOT_PLAIN.sub("", match[1])):
            yield match.span(1)


_NAMED_SSN = re.compile(
    rf"(?:(?<![A-Za-z{_DONE}])ssn|social security(?: number| no\.?)?)[ :#=]{{0,4}}(?:is )?({_LOOSE_SSN})", re.IGNORECASE
)

# In this order: what has letters comes before what has digits alone, and the longer before the shorter.
_FINDERS: tuple[tuple[str, Finder], ...] = (
    ("[CREDENTIALS]", _pattern_finder(_SECRET, 1)),
    ("[CREDENTIALS]", _pattern_finder(_USER_INFO, 1)),
    ("[EMAIL]", _pattern_finder(_EMAIL)),
    (
        "[IBAN]",
        _number_finder(r"[A-Za-z]{2}[0-9]{2}(?:[0-9A-Za-z]{11,30}+|(?:[ -][0-9A-Za-z]{1,4}+){3,8}+)", _is_iban),
    ),
    ("[IP]", _find_ipv6),
    ("[IP]", _find_ipv4),
    (
        "[RESIDENT_ID]",
        _number_finder(r"[1-9][0-9]{5}[ -]?(?:18|19|20)[0-9]{6}[ -]?[0-9]{3}[0-9Xx]", _is_resident_id),
    ),
    ("[CARD]", _number_finder(r"[2-69][0-9]{3,18}+(?:[ .-][0-9]{1,13}+){0,4}+", _is_card)),
    ("[SSN]", _number_finder(_GROUPED_SSN, ssn.is_valid)),
    ("[SSN]", _find_named_ssn),
    ("[PHONE]", _number_finder(r"(?:\+ ?|00)[1-9][0-9]{0,14}+(?:[ .()-]{1,3}+[0-9]{1,14}+){0,7}+", _is_phone)),
    (
        "[PHONE]",
        _number_finder(
            r"(?:86[ -]?)?1[3-9][0-9](?:[ .-]?[0-9]{4}){2}(?! ?(?:元|円|万|亿|%))", _is_chinese_mobile, unless=_COUNTED
        ),
    ),
)
_TAG = re.compile("|".join(sorted({re.escape(tag) for tag, _ in _FINDERS})))


def mask(text: str) -> str:
    """Return `text` with a tag in place of each piece of personal data; all else stays as it is, byte for byte.

    | tag | what |
    |---|---|
    | `[CREDENTIALS]` | user and password in a URL, and the values of its parameters that are called like secrets |
    | `[EMAIL]` | an e-mail address with a top-level domain |
    | `[IBAN]` | an IBAN (ISO 13616: structure of its country, check digits mod 97), grouped or not |
    | `[IP]` | an IPv4 or IPv6 address; not `::1`, and no versions (`version 1.2.3.4`) |
    | `[RESIDENT_ID]` | a Chinese resident id of 18 digits (GB 11643: date and check digit) |
    | `[CARD]` | a bank card number (ISO/IEC 7812: length, Luhn check digit), grouped or not |
    | `[SSN]` | a US social security number that may have been given out, with hyphens, or named as one |
    | `[PHONE]` | a phone number with + or 00 and a country code, or a Chinese mobile one, of a plan in use |

    Names, addresses and national phone numbers of other countries stay. Never raises; linear in the length of `text`;
    `mask(mask(text)) == mask(text)`.
    """
    shadow = _TAG.sub(lambda tag: _DONE * len(tag[0]), text.translate(_PLAIN))
    found: list[tuple[int, int, str]] = []
    for tag, find in _FINDERS:
        spans = list(find(shadow))
        found += [(begin, end, tag) for begin, end in spans]
        shadow = _replace(shadow, [(begin, end, _DONE * (end - begin)) for begin, end in spans])
    return _replace(text, sorted(found))


def _replace(text: str, parts: list[tuple[int, int, str]]) -> str:
    """Return `text` with other words between the begins and ends of `parts`, which ascend."""
    if not parts:
        return text
    kept: list[str] = []
    position = 0
    for begin, end, word in parts:
        kept += (text[position:begin], word)
        position = end
    return "".join((*kept, text[position:]))
