// Shows the two images of a flicker pair in turn; opens all details for printing.
document.querySelectorAll(".flicker").forEach(function (pair) {
  var images = pair.querySelectorAll("img");
  var button = pair.querySelector("button");
  var shown = pair.querySelector(".shown");
  var labels = Array.prototype.map.call(images, function (image) {
    return image.alt.slice(image.alt.lastIndexOf("(") + 1, -1);
  });
  var timer = null;
  function show(index) {
    images[index].classList.add("on");
    images[1 - index].classList.remove("on");
    shown.textContent = labels[index];
  }
  function current() { return images[0].classList.contains("on") ? 0 : 1; }
  pair.querySelector(".frames").addEventListener("click", function () { show(1 - current()); });
  button.addEventListener("click", function () {
    if (timer) { clearInterval(timer); timer = null; }
    else { timer = setInterval(function () { show(1 - current()); }, 700); }
    button.textContent = timer ? "Stop" : "Flicker";
    button.setAttribute("aria-pressed", timer ? "true" : "false");
  });
});
window.addEventListener("beforeprint", function () {
  document.querySelectorAll("details").forEach(function (part) { part.open = true; });
});
