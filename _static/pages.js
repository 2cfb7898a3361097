// The moving picture of the front page plays once. Its button plays it again, also for readers whose system asks for
// less motion and who see its last frame.
document.addEventListener("DOMContentLoaded", () => {
  for (const picture of document.querySelectorAll("picture.moving")) {
    const image = picture.querySelector("img");
    const address = image.getAttribute("src");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "play-pictures";
    button.textContent = "Play";
    button.addEventListener("click", () => {
      picture.querySelectorAll("source").forEach((still) => still.remove());
      image.src = `${address}?${Date.now()}`;
    });
    picture.after(button);
  }
});

// The bibliography calls itself a list, but its entries are no list items to a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".citation-list, .citation-list [role]")) {
    element.removeAttribute("role");
  }
});
