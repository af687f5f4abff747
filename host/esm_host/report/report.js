"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const views = new Map();

  async function draw(id, scheme) {
    const place = document.querySelector(`#${CSS.escape(id)} .chart`);
    views.get(id)?.finalize();
    // Expressions are interpreted (`ast`): the page's policy forbids making code of text.
    const view = await vegaEmbed(place, data.figures[id].spec, {
      actions: false,
      ast: true,
      config: data.themes[scheme],
      renderer: "svg",
      tooltip: { disableDefaultStyle: true },
    });
    views.set(id, view);
    await settle(view);
    // Read aloud are the chart's name and text, and its table; not the labels of its axes.
    place.querySelector("svg").setAttribute("aria-hidden", "true");
  }

  // These roles alone make a table of it for screen readers.
  const ROLES = [
    ["thead, tbody", "rowgroup"], ["tr", "row"], ["td", "cell"],
    ["thead th", "columnheader"], ["tbody th", "rowheader"], ["caption", "caption"],
  ];

  // Legends have as many lines as the width asks for, which is known after the first layout alone.
  const settle = ({ view }) => view.resize().runAsync();

  let turn = 0;
  async function drawAll() {
    const mine = ++turn;
    const scheme = dark.matches ? "dark" : "light";
    for (const id of Object.keys(data.figures)) {
      if (mine !== turn) return; // the scheme has changed meanwhile
      try {
        await draw(id, scheme);
      } catch (error) {
        console.error(`${id}: ${error}`);
      }
      await new Promise((done) => setTimeout(done)); // so that the page stays usable
    }
    document.documentElement.dataset.scheme = scheme;
  }

  // The data of a chart, as a table that is made when it is first looked at.
  function fill(details) {
    const id = details.closest("figure").id;
    const { spec, rows, columns, caption } = data.figures[id];
    const region = make("div", { class: "scroll", role: "group", tabindex: "0", "aria-label": `Data: ${caption}` });
    const table = make("table");
    table.append(make("caption"));
    table.caption.append(make("span", {}, caption));
    const head = table.createTHead().insertRow();
    for (const [, title, digits] of columns) {
      const th = make("th", { scope: "col", class: digits === null ? "" : "number" });
      th.append(make("button", { type: "button" }, title));
      head.append(th);
    }
    const body = table.createTBody();
    for (const row of spec.datasets[rows] ?? []) {
      const tr = body.insertRow();
      columns.forEach(([field, , digits], index) => {
        const value = row[field];
        const cell = make(index ? "td" : "th", index ? {} : { scope: "row" });
        if (digits === null) {
          cell.textContent = value ?? "–";
        } else {
          cell.className = "number";
          cell.textContent = value === null ? "–" : value.toFixed(digits).replace("-", "\u2212");
          if (value !== null) cell.dataset.value = value;
        }
        tr.append(cell);
      });
    }
    region.append(table);
    details.append(region);
    fit(region);
  }

  function make(name, attributes = {}, text = "") {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  }

  function sort(th) {
    const table = th.closest("table");
    const index = th.cellIndex;
    const numbers = th.classList.contains("number");
    // Numbers begin with the largest.
    const up = th.ariaSort === null ? !numbers : th.ariaSort === "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[index];
      if (numbers) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
      return cell.textContent;
    };
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // those without come last
      const order = numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  // Rows of a table that is too wide become cards, on which every number has its heading.
  function fit(region) {
    const table = region.querySelector("table");
    const titles = [...table.tHead.rows[0].cells].map((th) => th.textContent);
    for (const [selector, role] of ROLES) {
      for (const element of table.querySelectorAll(selector)) element.setAttribute("role", role);
    }
    table.setAttribute("role", "table");
    for (const row of table.tBodies[0].rows) {
      for (const cell of row.cells) cell.dataset.label = titles[cell.cellIndex];
    }
    region.classList.remove("cards");
    region.classList.toggle("cards", region.scrollWidth > region.clientWidth + 1);
  }

  let resized;
  function fitAll() {
    document.querySelectorAll(".scroll").forEach(fit);
    clearTimeout(resized);
    resized = setTimeout(() => views.forEach(settle), 100); // after Vega's own
  }

  async function copy(button) {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // not allowed here: as by hand
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    const label = button.firstChild;
    label.data = "Copied";
    setTimeout(() => { label.data = "Copy"; }, 2000);
  }

  document.addEventListener("click", (event) => {
    const th = event.target.closest("thead button")?.closest("th");
    if (th) sort(th);
    const button = event.target.closest(".copy");
    if (button) copy(button);
  });
  document.addEventListener("toggle", (event) => {
    const details = event.target;
    if (details.matches("details.data") && details.open && !details.querySelector("table")) fill(details);
  }, true);
  dark.addEventListener("change", drawAll);
  addEventListener("resize", fitAll);
  fitAll();
  drawAll();
})();
