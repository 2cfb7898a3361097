// Sliders of the pages: a name for each handle, and a button that plays the pictures one after the other.
// The pictures themselves are linked to the slider by the widgets' own script.

// The widget manager asks MathJax 2 to typeset each text widget; the pages have MathJax 3, where there is nothing to ask.
document.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && !window.MathJax.Hub) {
    window.MathJax.Hub = { Queue() {} };
  }
});

const PICTURE_MS = 500;

function playButton(handle) {
  const button = document.createElement("button");
  const press = (key) => handle.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const at = (end) => Number(handle.getAttribute("aria-valuenow")) === Number(handle.getAttribute(`aria-value${end}`));
  let timer = null;
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }
  button.type = "button";
  button.className = "play-pictures";
  button.textContent = "Play";
  button.addEventListener("click", () => {
    if (timer !== null) {
      stop();
      return;
    }
    if (at("max")) {
      press("Home");
    }
    button.textContent = "Pause";
    timer = setInterval(() => {
      press("ArrowRight");
      if (at("max")) {
        stop();
      }
    }, PICTURE_MS);
  });
  return button;
}

function completeSliders() {
  for (const slider of document.querySelectorAll(".widget-hslider:not(.with-play)")) {
    const handle = slider.querySelector(".noUi-handle");
    if (handle) {
      slider.classList.add("with-play");
      handle.setAttribute("aria-label", slider.querySelector("label").textContent);
      slider.append(playButton(handle));
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  completeSliders();
  new MutationObserver(completeSliders).observe(document.body, { childList: true, subtree: true });
});
