"""Sign in and out.

An unknown name and a wrong password have the same response and response time; both delay the next try (attempts.py).
"""

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
    return page(request, "login.html", "Sign in", next=local_address(next), name="", error="")


@router.post("/login")
def login(request: Request, form: CheckedForm) -> Response:
    attempts: Attempts = request.app.state.attempts
    name, target = text_of(form, "name").strip(), local_address(text_of(form, "next") or "/")
    origin = (name, request.client.host if request.client else "")
    seconds = math.ceil(attempts.wait(*origin))
    if seconds:
        return _again(
            request, target, name, 429, f"Too many failed sign-ins. Wait {seconds} s, then try again.", seconds
        )
    attempts.failed(*origin)  # counted before the check, so that parallel tries are counted
    if not users.check_password(name, text_of(form, "password")):
        return _again(request, target, name, 401, "Wrong name or password.")
    attempts.succeeded(*origin)
    sign_in(request, name)
    return RedirectResponse(target, 303)


@router.post("/logout")
def logout(request: Request, user: SignedIn, form: CheckedForm) -> Response:
    sign_out(request)
    return RedirectResponse("/login", 303)


def _again(request: Request, target: str, name: str, status: int, error: str, seconds: int = 0) -> Response:
    answer = page(request, "login.html", "Sign in", status, next=target, name=name, error=error)
    if seconds:
        answer.headers["Retry-After"] = str(seconds)
    return answer
