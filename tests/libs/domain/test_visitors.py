"""A9: who is a bot by the user agent, and who is a person whatever lists say."""

import re

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA

from libs.domain.visitors import find_bot
from tests.attribution.strategies import AGENTS

APPLE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
WEBVIEW = "Mozilla/5.0 (Linux; Android 13; SM-G991B; wv) AppleWebKit/537.36 Chrome/119.0 Mobile Safari/537.36 "
PEOPLE = [
    *(agent for agent in AGENTS if not re.search("WhatsApp|Googlebot", agent)),
    f"{APPLE}Version/17.1 Mobile/15E148 Safari/604.1",
    f"{APPLE}Mobile/15E148 [FBAN/FBIOS;FBAV/442.0.0.40.104;FBDV/iPhone14,2;FBSV/17.1;FBID/phone]",
    f"{APPLE}Mobile/15E148 [Pinterest/iOS]",
    f"{APPLE}Mobile/15E148 Twitter for iPhone/10.15",
    f"{APPLE}Mobile/15E148 Snapchat/12.60.0.40 (like Safari/8616.2.9.0.1, panda)",
    f"{APPLE}Mobile/15E148 Safari Line/13.18.0",
    f"{APPLE}GSA/287.0 Mobile/15E148 Safari/604.1",
    f"{APPLE}Mobile/15E148 Outlook-iOS/2.0",
    f"{APPLE}Mobile/15E148 musical_ly_32.5.0 BytedanceWebview/d8a21c6",
    f"{WEBVIEW}Instagram 308.0.0.36.109 Android (33/13; 480dpi; 1080x2176; samsung; SM-G991B)",
    f"{WEBVIEW}MetaIAB Facebook",
    f"{WEBVIEW.replace('SM-G991B', 'CPH2557 Build/AP3A.240617.008')}Instagram 406.0.0.58.159",
    f"{WEBVIEW.replace('SM-G991B', 'CUBOT NOTE 20')}",
    "com.zhiliaoapp.musically/2023309030 (Linux; U; Android 13; en_US; Pixel 7; Cronet/TTNetVersion:6c7b701a)",
    "Dalvik/2.1.0 (Linux; U; Android 13; Pixel 7 Build/TQ3A.230805.001)",
    "okhttp/4.12.0",
    "Go-http-client/1.1",
    "curl/8.5.0",
    "",
]


@pytest.mark.parametrize(
    ("user_agent", "words"),
    [
        ("WhatsApp/2.23.20.0 A", "a link preview of WhatsApp"),
        ("facebookexternalhit/1.1 (+http://www.facebook.com/)", "a link preview of facebookexternalhit"),
        ("TelegramBot (like TwitterBot)", "a link preview of TelegramBot"),
        ("Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", "a link preview of Slackbot"),
        (
            "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X) Chrome/125 Mobile Safari/537.36 (compatible; Googlebot/2.1)",
            "the search engine's crawler Googlebot",
        ),
        (f"{APPLE}Mobile/15E148 Snap URL Preview Service; bot", "a link preview of Snap URL Preview Service"),
        ("Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)", "the monitor UptimeRobot"),
        ("Mozilla/5.0 (compatible; GPTBot/1.0; +https://openai.com/gptbot)", "the AI crawler GPTBot"),
        ("Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/119.0.0.0", "the automated browser HeadlessChrome"),
        ("AdsBot-Google (+http://www.google.com/adsbot.html)", "the crawler AdsBot-Google"),
    ],
)  # fmt: skip
def test_a_bot_is_told_by_name(user_agent: str, words: str) -> None:
    assert find_bot(user_agent) == words


@pytest.mark.parametrize("user_agent", PEOPLE)
def test_people_and_what_networks_ping_with_are_no_bots(user_agent: str) -> None:
    assert find_bot(user_agent) is None


def test_the_list_is_read_as_its_package_reads_it() -> None:
    """Every bot it knows is found, but those that look like a phone: an update of the list may bring more of these."""
    missed = {
        bot["pattern"]
        for bot in CRAWLER_USER_AGENTS_DATA
        if "http-library" not in bot["tags"]
        for user_agent in bot["instances"]
        if find_bot(user_agent) is None
    }
    assert missed == {
        "AP3A\\.240617\\.008",
        "Chrome-Lighthouse",
        "Hotjar",
        "MetaIAB Facebook",
        "Nitro-",
        "adbeat\\.com",
    }
