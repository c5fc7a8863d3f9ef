"""What tests of pages do in a browser."""

from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait


def wait(browser: Any, condition: Any) -> None:
    """Until a condition holds; what the page draws anew while it is read is read again."""
    WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(lambda _: condition())


def press(browser: Any, *keys: str, held: str = "") -> None:
    actions = ActionChains(browser)
    if held:
        actions.key_down(held)
    actions.send_keys(*keys)
    if held:
        actions.key_up(held)
    actions.perform()


def text(browser: Any, element: str) -> str:
    return str(browser.find_element(By.ID, element).text)
