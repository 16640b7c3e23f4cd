"""Signing in and out. A wrong name and a wrong password look the same, take the same time, and slow the next try."""

from __future__ import annotations

import math

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from finetune_pipeline.desk import users
from finetune_pipeline.desk.attempts import Attempts
from finetune_pipeline.desk.page import page
from finetune_pipeline.desk.session import CheckedForm, SignedIn, local_address, sign_in, sign_out, text_of

router = APIRouter()


@router.get("/login")
def show(request: Request, next: str = "/") -> Response:
    return page(request, "login.html", "Sign in", next=local_address(next), name="", complaint="")


@router.post("/login")
def login(request: Request, form: CheckedForm) -> Response:
    attempts: Attempts = request.app.state.attempts
    name, wanted = text_of(form, "name").strip(), local_address(text_of(form, "next") or "/")
    who = (name, request.client.host if request.client else "")
    seconds = math.ceil(attempts.wait(*who))
    if seconds:
        return _again(request, wanted, name, 429, f"Too many wrong tries. Wait {seconds} s, then try again.", seconds)
    attempts.failed(*who)  # counted before it is checked, so that tries made at the same time do not slip through
    if not users.check_password(name, text_of(form, "password")):
        return _again(request, wanted, name, 401, "This name and password do not belong together.")
    attempts.succeeded(*who)
    sign_in(request, name)
    return RedirectResponse(wanted, 303)


@router.post("/logout")
def logout(request: Request, user: SignedIn, form: CheckedForm) -> Response:
    sign_out(request)
    return RedirectResponse("/login", 303)


def _again(request: Request, wanted: str, name: str, status: int, complaint: str, seconds: int = 0) -> Response:
    answer = page(request, "login.html", "Sign in", status, next=wanted, name=name, complaint=complaint)
    if seconds:
        answer.headers["Retry-After"] = str(seconds)
    return answer
