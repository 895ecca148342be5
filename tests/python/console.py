"""Plays a person at the console: console.py CHROMIUM SCREENSHOTS SCENARIO URL ARGUMENT..

Each scenario is a function below. It says where it is in lines on standard output, and waits at some of them for a line on standard
input. It fails on whatever a page should not do: an error in its console, a request to another host, something wider than the
window, a barrier that axe finds.
"""
import base64
import contextlib
import os
import pathlib
import re
import sys

import axe_playwright_python
from playwright.sync_api import expect, sync_playwright

WAIT_MS = 60_000
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 320, "height": 640}
VIEWS = ["queries", "devices", "gallery", "measures", "about"]
AXE = pathlib.Path(axe_playwright_python.__file__).with_name("axe.min.js")
# A photo that is missing is answered 404 with a drawing in its place.
EXPECTED = re.compile(r"status of (401|404|429|503)|ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET")


class Person:
    def __init__(self, browser, url, screenshots):
        self.browser, self.url, self.screenshots = browser, url, screenshots
        self.problems = []

    @contextlib.contextmanager
    def page(self, **options):
        context = self.browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and self.note(message.text))
        page.on("pageerror", lambda error: self.note(str(error)))
        page.on("request", lambda request: request.url.startswith((self.url, "blob:", "data:")) or self.note("foreign " + request.url))
        yield page
        context.close()
        assert not self.problems, self.problems

    def note(self, problem):
        if not EXPECTED.search(problem):
            self.problems.append(problem)

    def picture(self, page, name, **options):
        page.screenshot(path=self.screenshots / (name + ".png"), **options)

    def check(self, page, what):
        """No barrier, nothing wider than the window."""
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "%s is %d px wider than its window" % (what, wide)
        if not page.evaluate("'axe' in window"):
            page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run(document, {resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})")
        barriers = ["%s (%s): %s" % (one["id"], one["impact"], [node["html"][:200] + " / " + node["failureSummary"][:300] for node in one["nodes"][:3]]) for one in found["violations"]]
        assert not barriers, "%s has barriers:\n%s" % (what, "\n".join(barriers))
        assert len(found["passes"]) > 10, "axe looked at nothing"


def say(line):
    print(line, flush=True)


def wait():
    assert sys.stdin.readline(), "the test has ended"


def is_live(page):
    expect(page.locator("#link")).to_have_text("live", timeout=WAIT_MS)


def log_in_and_follow(person, password, label, device):
    with person.page() as page:
        page.goto(person.url + "/")
        expect(page).to_have_url(person.url + "/login")
        person.check(page, "the login page")
        page.get_by_label("Password").fill("not the password")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("this is not the password")
        person.picture(page, "login")
        page.get_by_label("Password").fill(password)
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile(re.escape(person.url) + "/$"))
        is_live(page)
        expect(page.get_by_text("No queries yet")).to_be_visible()
        person.picture(page, "queries-empty")
        say("following")
        wait()
        row = page.locator(".query").first
        expect(row).to_contain_text(device)
        expect(row).to_contain_text(label)
        loaded(page, ".query .photo")
        # The cookie is out of reach of scripts, and without it nothing is shown.
        assert page.evaluate("document.cookie") == ""
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict", cookie
        page.get_by_role("link", name="About").click()
        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(person.url + "/login")
        page.goto(person.url + "/")
        expect(page).to_have_url(person.url + "/login")


def photograph_a_query(person, label, device):
    with person.page() as page:
        page.goto(person.url + "/")
        row = page.locator(".query").first
        expect(row).to_contain_text(device)
        expect(row).to_contain_text(label)
        person.picture(page, "device")


def loaded(page, selector):
    """All photos in view are there, and are no placeholders."""
    page.wait_for_function(
        "selector => { const all = [...document.querySelectorAll(selector)].filter(i => i.offsetParent !== null && i.getBoundingClientRect().top < innerHeight);"
        " return all.length > 0 && all.every(i => i.complete && i.naturalWidth > 0); }", arg=selector)


def find_wrong_match(person, device):
    with person.page() as page:
        page.goto(person.url + "/")
        is_live(page)
        expect(page.locator(".query")).to_have_count(13)
        clicks = 0
        page.get_by_role("button", name="Doubtful").click()
        clicks += 1
        asked = page.locator(".query", has_text=device)
        expect(asked).to_have_count(1)
        assert page.locator(".query").count() < 13
        loaded(page, ".query .photo")
        person.picture(page, "wrong-match-1")
        asked.locator(".match").first.click()
        clicks += 1
        dialog = page.get_by_role("dialog")
        expect(dialog.locator(".device")).to_have_text(device)
        expect(dialog).to_contain_text("match 1 of 5")
        loaded(page, "dialog .chosen")
        person.check(page, "the details")
        person.picture(page, "wrong-match-2")
        assert clicks < 3
        dialog.get_by_role("link", name="All its queries").click()
        expect(dialog).to_be_hidden()
        expect(page.locator(".query")).to_have_count(1)
        page.get_by_label("Device").select_option("")
        expect(page.locator(".query")).to_have_count(13)
        page.get_by_label("Label").fill("nothing is called this")
        expect(page.get_by_text("No query fits the filter")).to_be_visible()


def browse_gallery(person, label, photo):
    with person.page() as page:
        page.goto(person.url + "/#/gallery")
        expect(page.locator(".grid .match")).to_have_count(12)
        page.get_by_label("Text in id or label").fill(label)
        expect(page.locator(".grid .match").first).to_contain_text(label)
        assert page.locator(".grid .match").count() < 12
        page.get_by_label("Text in id or label").fill("nothing is called this")
        expect(page.get_by_text("No image fits")).to_be_visible()
        # Dropped, as from a folder beside the browser.
        bytes_ = base64.b64encode(pathlib.Path(photo).read_bytes()).decode()
        transfer = page.evaluate_handle(
            "text => { const transfer = new DataTransfer(); const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));"
            " transfer.items.add(new File([bytes], 'dropped.jpg', { type: 'image/jpeg' })); return transfer; }", bytes_)
        page.dispatch_event("#content", "dragover", {"dataTransfer": transfer})
        page.dispatch_event("#content", "drop", {"dataTransfer": transfer})
        expect(page.locator(".head p")).to_contain_text("nearest to the photo")
        first = page.locator(".grid .match").first
        expect(first).to_contain_text(label)
        # The very photo that is in the gallery.
        expect(first.locator(".meter")).to_contain_text("1.00")
        loaded(page, ".grid .photo")
        person.picture(page, "gallery-search")
        first.click()
        expect(page.get_by_role("dialog")).to_contain_text(label)
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Clear").click()
        expect(page.locator(".head p")).not_to_contain_text("nearest")
        # Picked, and no photo at all.
        page.locator("#g-photo").set_input_files({"name": "text.jpg", "mimeType": "image/jpeg", "buffer": b"no photo"})
        expect(page.get_by_text("This photo cannot be searched for")).to_be_visible()
        person.problems = [problem for problem in person.problems if "422" not in problem]


def look_at_every_view(person):
    looks = [("light", "desktop", DESKTOP), ("dark", "desktop", DESKTOP), ("light", "phone", PHONE), ("dark", "phone", PHONE)]
    for scheme, kind, size in looks:
        with person.page(viewport=size, color_scheme=scheme, has_touch=kind == "phone") as page:
            for view in VIEWS:
                page.goto(person.url + "/#/" + view)
                is_live(page)
                settled(page, view)
                what = "%s-%s-%s" % (view, kind, scheme)
                person.picture(page, what)
                person.check(page, what)
            page.goto(person.url + "/#/queries")
            page.locator(".query .match").first.click()
            loaded(page, "dialog .chosen")
            what = "details-%s-%s" % (kind, scheme)
            person.picture(page, what)
            person.check(page, what)
    say("seen without a password")
    wait()
    for scheme, kind, size in looks:
        with person.page(viewport=size, color_scheme=scheme) as page:
            page.goto(person.url + "/")
            expect(page.get_by_label("Password")).to_be_focused()
            person.picture(page, "login-%s-%s" % (kind, scheme))
            person.check(page, "login-%s-%s" % (kind, scheme))


def settled(page, view):
    if view == "queries":
        expect(page.locator(".query")).to_have_count(10)
        loaded(page, ".query .photo")
    elif view == "devices":
        expect(page.locator("tbody tr")).to_have_count(3)
        expect(page.locator(".rollouts li")).to_have_count(1)
    elif view == "gallery":
        loaded(page, ".grid .photo")
    elif view == "measures":
        page.wait_for_function("() => document.querySelectorAll('.plot path').length >= 9")
        expect(page.get_by_text("since the start").or_(page.get_by_text("of the last minute")).first).to_be_visible()
        expect(page.locator(".tile dd").first).not_to_have_text("-")
    elif view == "about":
        expect(page.get_by_text("connected, queries arrive")).to_be_visible()


def walk_by_keyboard(person):
    with person.page() as page:
        page.goto(person.url + "/")
        is_live(page)
        expect(page.locator(".query")).to_have_count(3)
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#content")).to_be_focused()
        # On through the filter to the first match, and every stop can be seen.
        reach(page, ".query .match")
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog.locator(".device")).to_have_text("cam-door")
        for _ in range(12):
            page.keyboard.press("Tab")
            inside = page.evaluate("document.activeElement === document.body || document.activeElement.closest('dialog') !== null")
            assert inside, "the focus leaves the dialog"
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(page.locator(".query .match").first).to_be_focused()
        for view in VIEWS[1:]:
            link = page.locator("nav a[href='#/%s']" % view)
            link.focus()
            page.keyboard.press("Enter")
            expect(page.locator("main h1")).to_be_focused()
            expect(link).to_have_attribute("aria-current", "page")
        page.locator("nav a[href='#/gallery']").focus()
        page.keyboard.press("Enter")
        expect(page.locator(".grid .match").first).to_be_visible()
        reach(page, ".grid .match")


def reach(page, selector):
    """By Tab alone; each element on the way must show that it has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        shown = page.evaluate(
            "() => { const e = document.activeElement; const s = getComputedStyle(e.closest('.button') ?? e);"
            " return [e.matches(':focus-visible'), s.outlineStyle, e.outerHTML.slice(0, 120)]; }")
        assert shown[0] and shown[1] != "none", "the focus cannot be seen on %s" % shown[2]
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError("%s is not reached by Tab" % selector)


def reconnect(person, device):
    with person.page() as page:
        page.goto(person.url + "/")
        is_live(page)
        say("live")
        expect(page.locator("#link")).to_have_text("disconnected", timeout=WAIT_MS)
        person.picture(page, "disconnected")
        say("disconnected")
        wait()
        is_live(page)
        say("live again")
        wait()
        expect(page.locator(".query").first).to_contain_text(device)


def main():
    chromium, screenshots, scenario, url = sys.argv[1:5]
    play = {f.__name__: f for f in (log_in_and_follow, photograph_a_query, find_wrong_match, browse_gallery, look_at_every_view, walk_by_keyboard, reconnect)}[scenario]
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        play(Person(browser, url, pathlib.Path(screenshots)), *sys.argv[5:])
        browser.close()


if __name__ == "__main__":
    main()
