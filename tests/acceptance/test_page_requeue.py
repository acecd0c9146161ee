"""Dead rows of the real bridge, requeued from its page in a real Chromium, arrive at the cloud."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness import eventually
from tests.harness.chromium import Chromium, Tab, chromium_command
from tests.harness.cloud import Cloud, answer
from tests.harness.cloud_stage import CloudStage
from tests.harness.mosquitto import Mosquitto

TOKEN = "a-token-of-the-test"
MESSAGES = 5


async def send_again(page: Tab) -> None:
    await page.shows("#dead", f"{MESSAGES} × refused by the cloud")
    await page.run("(document.querySelector('#dead button').click(), 0)")
    await page.shows("#requeue-title", "Send again?")
    await page.type(TOKEN)
    await page.press("Enter", 13, "\r")


async def test_dead_rows_requeued_from_the_page_arrive_at_the_cloud(tmp_path: Path, mosquitto: Mosquitto) -> None:
    command = chromium_command()
    if command is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with Cloud() as cloud:
        cloud.always(answer(422))
        settings = {"web.token": TOKEN}
        with CloudStage(tmp_path / "stage", mosquitto, cloud, settings=settings) as stage:
            await asyncio.to_thread(stage.publish_numbered, MESSAGES)
            await eventually(lambda: stage.status["queue"]["dead"] == MESSAGES, what="dead")
            cloud.always()
            async with Chromium(command) as browser:
                page = await browser.open()
                await page.go(f"http://127.0.0.1:{stage.settings['web.port']}")
                await send_again(page)
                await eventually(lambda: stage.status["messages"]["delivered"] == MESSAGES, what="delivered")
                await page.shows("#dead-summary", "None")
            stage.stop()
            stage.audit().assert_kept(duplicates_max=0)
            assert len(stage.log(f"{MESSAGES} dead rows requeued from the web page")) == 1
