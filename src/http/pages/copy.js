"use strict";
// Adds a copy button to each text that is there to be copied.
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
      // Browsers provide the clipboard API only over HTTPS and on localhost.
      if (navigator.clipboard) {
        await navigator.clipboard.writeText(text.textContent);
        copied = true;
      } else {
        copied = document.execCommand("copy");
      }
    } catch {
      // The text stays selected, so the user can copy it.
    }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  text.before(button);
}
