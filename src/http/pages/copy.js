"use strict";
// A button beside each text that is there to be pasted. Without this script there is none.
for (const text of document.querySelectorAll("pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    const range = document.createRange();
    range.selectNodeContents(text);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    let copied = false;
    try {
      // The clipboard itself is there on https and on this machine only.
      if (navigator.clipboard) {
        await navigator.clipboard.writeText(text.textContent);
        copied = true;
      } else {
        copied = document.execCommand("copy");
      }
    } catch {
      // It stays selected, to be copied by hand.
    }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  text.before(button);
}
