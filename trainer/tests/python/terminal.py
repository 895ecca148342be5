"""Runs a command in a pseudo-terminal, as a person would see and stop it.

Standard input is JSON: command, folder, columns, rows, and keys: pairs of a regular expression and what is typed once the
screen shows it. Standard output is JSON: status (negative for a signal), output (everything that came), screens (the text of
the other screen after each frame that changed it), restored (whether the terminal has its settings back).
"""

import codecs
import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time

TIME_MAX_S = 300
# A control sequence, or one character.
TOKEN = re.compile(r"\x1b\[([?>]?)([0-9;]*)([@-~])|\x1b[^\[]|([^\x1b])")
# Burn hides the cursor after each frame.
FRAME_END = ("?", "25", "l")


class Screen:
    """As much of a terminal as ratatui uses: places, clearing, and text."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.clear()
        self.frames = []

    def clear(self):
        self.row = self.column = 0
        self.cells = [[" "] * self.columns for _ in range(self.rows)]

    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.cells)

    def feed(self, output):
        """Takes in what is whole, and returns the rest."""
        end = 0
        while token := TOKEN.match(output, end):
            end = token.end()
            private, numbers, kind, character = token.groups()
            if character is not None:
                self.put(character)
            elif (private, numbers, kind) == FRAME_END:
                if not self.frames or self.frames[-1] != self.text():
                    self.frames.append(self.text())
            elif kind == "H":
                row, column = (numbers.split(";") + ["1", "1"])[:2] if numbers else ("1", "1")
                self.row, self.column = int(row) - 1, int(column) - 1
            elif kind == "J" or (private, numbers) == ("?", "1049"):
                self.clear()
        return output[end:]

    def put(self, character):
        if character >= " " and self.row < self.rows and self.column < self.columns:
            self.cells[self.row][self.column] = character
            self.column += 1


def main():
    wanted = json.load(sys.stdin)
    ours, theirs = os.openpty()
    size = struct.pack("HHHH", wanted["rows"], wanted["columns"], 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    before = termios.tcgetattr(theirs)
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("GLIMPSE_LOG", None)
    child = subprocess.Popen(
        wanted["command"],
        cwd=wanted["folder"],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    screen, keys, output, rest = Screen(wanted["columns"], wanted["rows"]), wanted["keys"], "", ""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    start = time.monotonic()
    while True:
        ended = child.poll() is not None
        if select.select([ours], [], [], 0 if ended else 0.05)[0]:
            text = decode(os.read(ours, 65536))
            output += text
            rest = screen.feed(rest + text)
        elif ended:
            break
        if keys and screen.frames and re.search(keys[0][0], screen.frames[-1]):
            os.write(ours, keys.pop(0)[1].encode())
        if time.monotonic() - start > TIME_MAX_S:
            child.kill()
            break
    result = {
        "status": child.wait(),
        "output": output,
        "screens": screen.frames,
        "restored": termios.tcgetattr(theirs) == before,
    }
    json.dump(result, sys.stdout)


main()
