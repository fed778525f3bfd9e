"use strict";
// Comforts only; the page is complete without them.
for (const box of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    const code = box.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard from disk in some browsers
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  box.append(button);
}

// Films play while they are in view, unless the reader stopped them or prefers stillness.
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !target.dataset.held) {
        target.play().catch(() => {});
      } else if (!isIntersecting && !target.paused) {
        target.dataset.leaving = "1";
        target.pause();
      }
    }
  }, { threshold: 0.6 });
  for (const film of document.querySelectorAll("video")) {
    film.addEventListener("pause", () => {
      if (!film.dataset.leaving) film.dataset.held = "1";
      delete film.dataset.leaving;
    });
    film.addEventListener("play", () => { delete film.dataset.held; });
    seen.observe(film);
  }
}
