"""Subject and body of mails in any format."""

import base64
import email.policy
from email.message import EmailMessage
from textwrap import dedent

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamp_jax.datasets.avocado import Mail, html_text, parse_mail, strip_replies


def raw(text: str) -> bytes:
    return dedent(text).lstrip("\n").encode("latin-1")


def latin(text: str) -> str:
    return base64.b64encode(text.encode("latin-1")).decode()


REPLY = """\
I agree.

On Tue, May 1, 2001 at 9:00 AM, Ann <ann@x.com>
wrote:
> Shall we?
"""

# Name, mail, subject, body.
SHAPES = {
    "ascii": (
        raw("""
            From: ann@x.com
            Subject: Lunch on Friday

            Shall we eat?

            Ann
        """),
        Mail("Lunch on Friday", "Shall we eat?\n\nAnn"),
    ),
    "quoted-printable": (
        raw("""
            Subject: Q
            Content-Type: text/plain; charset="utf-8"
            Content-Transfer-Encoding: quoted-printable

            Caf=C3=A9 at =
            noon =E2=82=AC 5
        """),
        Mail("Q", "Café at noon € 5"),
    ),
    "base64": (
        raw(f"""
            Subject: B
            Content-Type: text/plain; charset=iso-8859-1
            Content-Transfer-Encoding: base64

            {latin("Grüße aus Köln")}
        """),
        Mail("B", "Grüße aus Köln"),
    ),
    "alternative": (
        raw("""
            Subject: A
            MIME-Version: 1.0
            Content-Type: multipart/alternative; boundary="cut"

            a preamble
            --cut
            Content-Type: text/plain

            the plain part
            --cut
            Content-Type: text/html

            <p>the <b>html</b> part</p>
            --cut--
        """),
        Mail("A", "the plain part"),
    ),
    "attachments": (
        raw("""
            Subject: M
            Content-Type: multipart/mixed; boundary=cut

            --cut
            Content-Type: text/plain

            first
            --cut
            Content-Type: text/plain
            Content-Disposition: attachment; filename=notes.txt

            ATTACHED
            --cut
            Content-Type: text/plain; name="old.txt"

            NAMED
            --cut
            Content-Type: message/rfc822

            Subject: forwarded

            FORWARDED
            --cut
            Content-Type: text/plain

            second
            --cut--
        """),
        Mail("M", "first\nsecond"),
    ),
    "html": (
        raw("""
            Subject: H
            Content-Type: text/html; charset=us-ascii

            <html><head><title>H</title><style>p {color: red}</style></head><body>
            <!-- hidden --><![if !mso]><p>Tom &amp; Ann&nbsp;say
            caf&#233;</p><![endif]><script>alert("<p>no</p>")</script>Line<br/>break
            </body></html>
        """),
        Mail("H", "Tom & Ann say café\nLine\nbreak"),
    ),
    "no subject": (raw("From: ann@x.com\n\nhello\n"), Mail("", "hello")),
    "encoded subject": (
        raw("Subject: Re: =?utf-8?B?R3LDvMOf?=\n =?utf-8?B?ZQ==?= to =?iso-8859-1?q?K=F6ln_am?=\n\tMontag\n\nbody\n"),
        Mail("Re: Grüße to Köln am Montag", "body"),
    ),
    "bare fold": (
        b"Subject: a long\n subject\r\n\tof three lines\r\n\r\none\r\ntwo\r\n",
        Mail("a long subject of three lines", "one\ntwo"),
    ),
    "reply": (raw("Subject: Re: R\n\n") + REPLY.encode(), Mail("Re: R", REPLY.strip())),
    "wrong charset": (
        "Subject: Größe\nContent-Type: text/plain; charset=us-ascii\n\nGröße\n".encode("latin-1"),
        Mail("Größe", "Größe"),
    ),
    "unknown charset": (
        "Subject: =?x-none?q?Gr=C3=B6=C3=9Fe?=\nContent-Type: text/plain; charset=x-none\n\nGröße\n".encode(),
        Mail("Größe", "Größe"),
    ),
    "empty body": (b"Subject: E\n\n \n\n", Mail("E", "")),
    "nothing": (b"", Mail("", "")),
    "boundary lost": (
        raw('Subject: L\nContent-Type: multipart/mixed; boundary="cut"\n\nas text\n'),
        Mail("L", "as text"),
    ),
    "no base64": (b"Subject: =?utf-8?b?a?= =?utf-8?b?YQ==?=\n\nx", Mail("=?utf-8?b?a?= =?utf-8?b?YQ==?=", "x")),
}


@pytest.mark.parametrize("name", SHAPES)
def test_subject_and_own_text_are_read_from_a_mail(name):
    mail, expected = SHAPES[name]
    assert parse_mail(mail) == expected


# Excluded because mailers cannot send them: lone surrogates, and control characters except line ends in bodies.
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=60)


@given(LINE, st.lists(LINE, max_size=4), st.sampled_from(["quoted-printable", "base64", "8bit"]))
@example("Gr\u00fc\u00dfe " * 12, ["\u20ac" * 90], "quoted-printable")
def test_mailed_texts_are_read_unchanged(subject, lines, encoding):
    message = EmailMessage(policy=email.policy.SMTP)
    message["Subject"] = subject
    message.set_content("\n".join(lines), cte=encoding)
    mail = parse_mail(bytes(message))
    assert mail.body == "\n".join(lines).strip()
    assert "".join(mail.subject.split()) == "".join(subject.split())  # the sender may fold at any space


HEADERS = (
    *(
        "Subject: ",
        "Content-Type: ",
        "text/html",
        "multipart/mixed; boundary=a",
        "message/rfc822",
        "; charset=",
        "utf-7",
    ),
    *(
        "Content-Transfer-Encoding: ",
        "base64",
        "x-uuencode",
        "begin 600 x\n",
        "=?utf-8?b?",
        "?=",
        "=?x?q?",
        "idna",
        "hex",
    ),
    *("Content-Disposition: ", "inline; filename*=", "; name*0*=''%ff", "--a\n", "\n", "\n\n", "\r", "\0"),
)
HTML = (
    "<p>",
    "<br/>",
    "<![x ",
    "<![",
    "]>",
    "<!a ",
    ">",
    "</",
    "&",
    "&am;",
    "&#",
    "a",
    "<style>",
    '"',
    "=",
    "<!--",
    "-->",
)


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(HEADERS).map(str.encode)), max_size=25).map(b"".join))
def test_any_bytes_are_read_as_a_mail(content):
    mail = parse_mail(content)
    assert "\r" not in mail.subject + mail.body
    assert mail == Mail(mail.subject.strip(), mail.body.strip())


@given(st.lists(st.sampled_from(HTML)))
def test_any_html_page_is_read(pieces):
    assert "\n\n\n" not in html_text("".join(pieces))


@pytest.mark.parametrize(
    ("body", "own"),
    [
        (REPLY, "I agree."),
        ("Yes\n\n-----Original Message-----\nFrom: Ann\nNo?\n", "Yes"),
        ("> quoted\nmine\n>> deeper\nalso mine", "mine\nalso mine"),
        ("On Monday she\nleft; Bob wrote: nothing", "On Monday she\nleft; Bob wrote: nothing"),
        ("the original message was lost", "the original message was lost"),
    ],
)
def test_only_earlier_mails_are_stripped(body, own):
    assert strip_replies(body) == own
