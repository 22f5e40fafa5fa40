"use strict";

const cards = [...document.querySelectorAll(".card")];
const filters = [...document.querySelectorAll("[data-filter]")];

function show(kind) {
  for (const card of cards) card.hidden = !card.dataset.kinds.split(" ").includes(kind);
  for (const button of filters) button.setAttribute("aria-pressed", button.dataset.filter === kind);
  document.getElementById("nothing").hidden = cards.some((card) => !card.hidden);
}

for (const button of filters) button.addEventListener("click", () => show(button.dataset.filter));

// A mark on the map leads to its card, also where a filter hides that.
for (const mark of document.querySelectorAll("a.mark")) {
  mark.addEventListener("click", () => {
    const card = document.getElementById(mark.getAttribute("href").slice(1));
    if (card.hidden) show("all");
    card.focus({ preventScroll: true });
  });
}

const viewer = document.getElementById("viewer");
const buttons = [...document.querySelectorAll("[data-picture]")];
let opened = null;

function openPicture(button) {
  opened = button;
  const image = viewer.querySelector("img");
  image.src = button.dataset.picture;
  image.alt = button.dataset.caption;
  viewer.querySelector("figcaption").textContent = button.dataset.caption;
  if (!viewer.open) viewer.showModal();
}

// To the next picture of the same kind among the queries that are not hidden, round and round.
function stepBy(by) {
  const same = buttons.filter(
    (button) => button.dataset.kind === opened.dataset.kind && !button.closest(".card").hidden,
  );
  openPicture(same[(same.indexOf(opened) + by + same.length) % same.length]);
}

for (const button of buttons) button.addEventListener("click", () => openPicture(button));
for (const button of viewer.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => stepBy(Number(button.dataset.step)));
}
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") stepBy(-1);
  if (event.key === "ArrowRight") stepBy(1);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close(); // a click beside the picture
});
viewer.addEventListener("close", () => opened.focus());

// The map: zoomed and dragged. The view box, in metres, changes; marks keep their size on the screen.
const sheet = document.querySelector(".sheet");
if (sheet) setUpMap(sheet, sheet.querySelector("svg"));

function setUpMap(sheet, svg) {
  const bar = document.querySelector(".scale");
  const whole = svg.viewBox.baseVal;
  const [width, height] = [whole.width, whole.height];
  let [x, y, zoom] = [0, 0, 1];

  function draw() {
    x = Math.min(Math.max(x, 0), width - width / zoom);
    y = Math.min(Math.max(y, 0), height - height / zoom);
    svg.setAttribute("viewBox", `${x} ${y} ${width / zoom} ${height / zoom}`);
    const unit = width / zoom / sheet.clientWidth;
    sheet.style.setProperty("--unit", unit);
    sheet.classList.toggle("closer", zoom > 1);
    const most = (sheet.clientWidth / 4) * unit;
    const power = 10 ** Math.floor(Math.log10(most));
    const metres = [5, 2, 1].find((step) => step * power <= most) * power;
    bar.style.width = `${metres / unit}px`;
    const text = metres >= 1000 ? `${metres / 1000} km` : `${Number(metres.toPrecision(3))} m`;
    bar.nextElementSibling.textContent = text;
  }

  // (left, top): the point that stays where it is, in pixels of the sheet.
  function zoomBy(factor, left = sheet.clientWidth / 2, top = sheet.clientHeight / 2) {
    const before = width / zoom / sheet.clientWidth;
    zoom = Math.min(Math.max(zoom * factor, 1), 64);
    const after = width / zoom / sheet.clientWidth;
    x += left * (before - after);
    y += top * (before - after);
    draw();
  }

  // The mark nearest to the middle comes into the middle: closer, there is always something to see.
  function centreOnMark() {
    const [left, top] = [x + width / zoom / 2, y + height / zoom / 2];
    const distance = (mark) => Math.hypot(mark.e - left, mark.f - top);
    const marks = [...svg.querySelectorAll(".mark > g")].map((g) => g.transform.baseVal[0].matrix);
    const nearest = marks.reduce((best, mark) => (distance(mark) < distance(best) ? mark : best));
    [x, y] = [nearest.e - width / zoom / 2, nearest.f - height / zoom / 2];
  }

  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      if (button.dataset.zoom > 1) centreOnMark();
      zoomBy(Number(button.dataset.zoom));
    });
  }
  svg.addEventListener("dblclick", (event) => zoomBy(2, event.offsetX, event.offsetY));
  // Two fingers on a touchpad arrive as a wheel with Ctrl; the wheel alone scrolls the page.
  svg.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoomBy(2 ** (-event.deltaY / 100), event.offsetX, event.offsetY);
    },
    { passive: false },
  );
  svg.addEventListener("pointermove", (event) => {
    if (event.buttons !== 1 || zoom === 1) return;
    svg.setPointerCapture(event.pointerId); // so that it goes on outside, and is no click on a mark
    const unit = width / zoom / sheet.clientWidth;
    x -= event.movementX * unit;
    y -= event.movementY * unit;
    draw();
  });
  // Else the browser would drag a mark's link away.
  svg.addEventListener("dragstart", (event) => event.preventDefault());
  new ResizeObserver(draw).observe(sheet);
}
