"""Verbs of docker compose, llama-swap, ollama and llama.cpp, and what they are called here. Pure."""

from __future__ import annotations

import shlex

SAID = {
    "start": "launch up",
    "run": "launch add FILE.gguf and launch up; launch up --ask 'a question' asks it",
    "create": "launch init",
    "new": "launch init",
    "scan": "launch init",
    "list": "launch status for what runs, launch plan for what could",
    "ls": "launch status for what runs, launch plan for what could",
    "models": "launch status for what runs, launch plan for what could",
    "show": "launch inspect FILE.gguf, or launch plan",
    "stats": "launch status --watch",
    "download": "launch add hf:ORG/REPO[:QUANT]",
    "rm": "launch remove NAME for the file, launch stop NAME for what runs",
    "delete": "launch remove NAME",
    "kill": "launch stop NAME",
    "unload": "launch stop NAME",
    "load": "launch restart NAME; a warm server also starts when it is asked",
    "quit": "launch down",
    "exit": "launch down",
    "validate": "launch check",
    "test": "launch check",
    "doctor": "launch check",
    "build": "launch render",
    "version": "launch --version",
    "help": "launch --help",
    "convert": "launch import FILE",
    "migrate": "launch import FILE",
    "export": "deploy.targets=[llama_swap,router] and launch render",
    "deploy": "launch install",
}


def said_elsewhere(word: str) -> str | None:
    """What a verb of another program, or a model's file, is said as here; None for what nobody says."""
    if word.endswith(".gguf"):
        return f"launch add {shlex.quote(word)}, then launch"
    return SAID.get(word.lower())
