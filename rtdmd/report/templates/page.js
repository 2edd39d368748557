"use strict";
// What the page does beyond being read: tables sort, curves show their values, pictures enlarge, the contents follow.

// Tables: a click on a column's head sorts by it, upwards, downwards, then as it was.
const number = (text) => {
  const plain = text.trim().replace(/−/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
  return /^[-+]?[\d.]/.test(plain) ? parseFloat(plain) : NaN;
};
const compare = (a, b) => {
  const x = number(a), y = number(b);
  if (!isNaN(x) && !isNaN(y)) return x - y;
  return a.localeCompare(b, "en", { numeric: true });
};
const sortTable = (table, column, order) => {
  const body = table.tBodies[0];
  table.rowsAtFirst ??= [...body.rows];
  const rows = [...table.rowsAtFirst];
  const text = (row) => row.cells[column].innerText.trim();
  const empty = (row) => ["", "–"].includes(text(row));
  if (order !== "none") {
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => empty(a) - empty(b) || sign * compare(text(a), text(b)));
  }
  body.append(...rows);
};
for (const table of document.querySelectorAll("table")) {
  if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      const order = next[head.getAttribute("aria-sort") ?? "none"];
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (order !== "none") head.setAttribute("aria-sort", order);
      sortTable(table, column, order);
    });
  });
}

// Curves: the value under the pointer or, with the arrow keys, at a step; all charts of a group show the same step.
const SVG = "http://www.w3.org/2000/svg";
const status = document.querySelector("[role=status]");
const element = (name, attributes) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const charts = new Map();
for (const svg of document.querySelectorAll("svg[data-x]")) {
  const points = svg.querySelector("polyline").getAttribute("points").split(" ").map((p) => p.split(",").map(Number));
  const [x, y] = [svg.dataset.x, svg.dataset.y].map((text) => text.split(" "));
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  charts.set(svg, { points, x, y, width, height, at: points.length - 1 });
}
const clear = (svg) => svg.querySelector(".cursor")?.remove();
const nearest = (values, wanted) => {
  const distances = values.map((value) => Math.abs(value - wanted));
  return distances.indexOf(Math.min(...distances));
};
const show = (svg, index) => {
  const chart = charts.get(svg);
  const [left, top] = chart.points[index];
  const cursor = element("g", { class: "cursor" });
  const text = element("text", { x: chart.width - 12, y: 15 });
  text.textContent = `${chart.x[index]}: ${chart.y[index]}`;
  const line = element("line", { x1: left, x2: left, y1: 22, y2: chart.height - 36 });
  cursor.append(line, element("circle", { cx: left, cy: top, r: 3.5 }), text);
  clear(svg);
  svg.append(cursor);
  chart.at = index;
};
const groupOf = (svg) => [...(svg.closest(".curves") ?? svg.parentElement).querySelectorAll("svg[data-x]")];
const showAll = (svg, index) => {
  const step = Number(charts.get(svg).x[index]);
  for (const other of groupOf(svg)) show(other, nearest(charts.get(other).x.map(Number), step));
};
for (const [svg, chart] of charts) {
  const label = svg.getAttribute("aria-label");
  svg.tabIndex = 0;
  const under = (event) => {
    const box = svg.getBoundingClientRect();
    const column = ((event.clientX - box.left) * chart.width) / box.width;
    showAll(svg, nearest(chart.points.map((point) => point[0]), column));
  };
  svg.addEventListener("pointermove", under);
  svg.addEventListener("pointerdown", under);
  const away = () => groupOf(svg).forEach(clear);
  svg.addEventListener("pointerleave", away);
  svg.addEventListener("blur", away);
  svg.addEventListener("keydown", (event) => {
    const last = chart.points.length - 1;
    const places = { ArrowLeft: chart.at - 1, ArrowRight: chart.at + 1, Home: 0, End: last };
    if (!(event.key in places)) return;
    event.preventDefault();
    showAll(svg, Math.min(last, Math.max(0, places[event.key])));
    status.textContent = `${label}: ${chart.y[chart.at]} at ${chart.x[chart.at]}`;
  });
}

// Pictures: a click enlarges one, a click there fits it into the window; arrow keys go on, Escape closes.
const viewer = document.querySelector(".viewer");
const pictures = [...document.querySelectorAll("figure img")];
let shown = 0;
const view = (index) => {
  shown = (index + pictures.length) % pictures.length;
  const own = pictures[shown];
  const image = own.cloneNode();
  image.loading = "eager";
  const width = Math.max(own.naturalWidth, Math.min(innerWidth * 0.96, 3 * own.naturalWidth));
  image.style.width = `${width}px`;
  if (own.closest(".small")) image.style.imageRendering = "pixelated";
  image.addEventListener("click", (event) => {
    event.stopPropagation();
    viewer.classList.toggle("fit");
  });
  const text = document.createElement("p");
  const caption = own.closest("figure").querySelector("figcaption")?.innerText ?? own.alt;
  text.textContent = `${caption} (Escape closes${pictures.length > 1 ? ", arrow keys show the others" : ""})`;
  viewer.classList.remove("fit");
  viewer.replaceChildren(text, image);
  viewer.scrollTo(0, 0);
};
pictures.forEach((picture, index) => {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `Enlarge: ${picture.alt}`);
  picture.replaceWith(button);
  button.append(picture);
  button.addEventListener("click", () => {
    view(index);
    viewer.showModal();
  });
});
viewer.addEventListener("click", () => viewer.close());
viewer.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (event.key in steps) view(shown + steps[event.key]);
});

// Contents: the section that is being read is marked.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const sections = [...document.querySelectorAll("main section")];
let marked = null;
const mark = () => {
  const passed = sections.filter((section) => section.getBoundingClientRect().top < innerHeight / 3);
  const link = links.get((passed.at(-1) ?? sections[0])?.id);
  if (link === marked || !link) return;
  marked?.removeAttribute("aria-current");
  link.setAttribute("aria-current", "true");
  const list = link.closest("ol");
  if (list.scrollWidth > list.clientWidth) list.scrollLeft = link.offsetLeft - list.offsetLeft;
  marked = link;
};
addEventListener("scroll", mark, { passive: true });
mark();
