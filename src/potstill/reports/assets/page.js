"use strict";
// The page of a run. Row text is only ever set as textContent: nothing that a model wrote becomes markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("summary-data").textContent);
  const zh = JSON.parse(byId("zh-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = (name) => { try { return localStorage.getItem("potstill." + name); } catch { return null; } };
  const store = (name, value) => { try { localStorage.setItem("potstill." + name, value); } catch { /* private mode */ } };
  let language = stored("language") || (navigator.language.startsWith("zh") ? "zh" : "en");
  let theme = stored("theme");

  const t = (text) => (language === "zh" && zh[text]) || text;
  const count = (n) => n.toLocaleString("en-US").replaceAll(",", "\u202f");

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // ---- text of rows ------------------------------------------------------------------------------------------------
  // Control characters that reorder or hide text, and half characters, are shown by their number.
  const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u115f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]/gu;
  const code = (char) => "U+" + char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

  function textNodes(text) {
    const nodes = [];
    let from = 0;
    for (const match of text.matchAll(HIDDEN)) {
      nodes.push(text.slice(from, match.index), element("span", { className: "control", textContent: code(match[0]) }));
      from = match.index + match[0].length;
    }
    nodes.push(text.slice(from));
    return nodes;
  }

  const plain = (text) => text.replace(HIDDEN, code);
  const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 1));

  // ---- language and theme ------------------------------------------------------------------------------------------
  function translate() {
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    for (const node of document.querySelectorAll("[data-t]")) {
      node.dataset.text ??= node.textContent;
      node.textContent = t(node.dataset.text);
    }
    for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
    byId("language").textContent = language === "zh" ? "English" : "中文";
    byId("language").lang = language === "zh" ? "en" : "zh";
    for (const slider of document.querySelectorAll(".slider input")) showThreshold(slider);
    if (hasRows) {
      fillFilters();
      showRows();
    }
  }

  byId("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    store("language", language);
    translate();
    drawCharts();
  });

  const isDark = () => (theme ? theme === "dark" : dark.matches);
  byId("theme").addEventListener("click", () => {
    theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    store("theme", theme);
    drawCharts();
  });
  if (theme) document.documentElement.dataset.theme = theme;
  dark.addEventListener("change", () => drawCharts());

  // ---- what lies packed in the page --------------------------------------------------------------------------------
  async function unpack(node) {
    const bytes = Uint8Array.from(atob(node.textContent), (char) => char.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  // ---- charts ------------------------------------------------------------------------------------------------------
  const views = new Map();
  let library = null;

  function loadLibrary() {
    library ??= (async () => {
      for (const node of document.querySelectorAll("script.library")) {
        new Function(await unpack(node)).call(globalThis);
        node.remove();
      }
    })();
    return library;
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function chartConfig() {
    const ink = colour("--ink"), soft = colour("--soft"), line = colour("--line");
    const font = getComputedStyle(document.body).fontFamily;
    return {
      background: null, font, view: { stroke: null },
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 500, labelLimit: 130 },
      legend: { labelColor: ink, titleColor: soft, orient: "top", titleFontWeight: 500 },
      title: { color: ink, anchor: "start", fontSize: 13, fontWeight: 560 },
      bar: { color: colour("--copper") }, line: { color: colour("--copper"), strokeWidth: 2 }, rule: { color: colour("--blue") },
      range: { category: ["--copper", "--blue", "--kept", "--rejected", "--failed", "--not-asked"].map(colour) },
    };
  }

  // Titles of a specification are English text, the key of its translation.
  const translated = (value, key) => {
    if (Array.isArray(value)) return value.map((item) => translated(item));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, name === "values" ? item : translated(item, name)]));
    }
    if (typeof value === "string" && value.startsWith("--")) return colour(value);
    return key === "title" && typeof value === "string" ? t(value) : value;
  };

  async function drawChart(node) {
    const name = node.dataset.chart + (node.dataset.model === undefined ? "" : ":" + node.dataset.model);
    const spec = data.charts[name];
    if (!spec) return;
    views.get(node)?.finalize();
    node.replaceChildren();
    const compiled = vegaLite.compile({ ...translated(spec), config: chartConfig() }, { logger: vega.logger(vega.Error) }).spec;
    const view = new vega.View(vega.parse(compiled), { renderer: "svg", container: node, hover: true, logLevel: vega.Error });
    views.set(node, view);
    await view.runAsync();
  }

  async function drawCharts() {
    const nodes = [...document.querySelectorAll("[data-chart]")];
    try {
      await loadLibrary();
      for (const node of nodes) await drawChart(node);
      for (const slider of document.querySelectorAll(".slider input")) showThreshold(slider);
      document.documentElement.dataset.charts = "drawn";
    } catch (error) {
      document.documentElement.dataset.charts = "failed: " + error.message;
      for (const node of nodes) node.textContent = t("This browser cannot draw the charts; the tables hold the same numbers.");
    }
  }

  // ---- the threshold -----------------------------------------------------------------------------------------------
  function showThreshold(slider) {
    const model = data.models[slider.dataset.model];
    const step = model.kept_at_min_score[slider.value] || { min_score: null, kept: 0 };
    const limit = step.min_score === null ? t("above every score") : "≥ " + String(step.min_score);
    const share = model.answered ? ((100 * step.kept) / model.answered).toFixed(1) + " %" : "–";
    const text = `${t("Score")} ${limit}: ${count(step.kept)} / ${count(model.answered)} (${share}) · ${t("now")} ${count(model.kept)}`;
    slider.nextElementSibling.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    const view = views.get(document.querySelector(`[data-chart="threshold"][data-model="${slider.dataset.model}"]`));
    const steps = model.kept_at_min_score;
    if (view && steps.length) view.signal("at", step.min_score ?? steps[steps.length - 1].min_score).run();
  }
  for (const slider of document.querySelectorAll(".slider input")) slider.addEventListener("input", () => showThreshold(slider));

  // ---- the rows ----------------------------------------------------------------------------------------------------
  const PAGE = 50;
  // A page for Snakemake's report holds single sections: then there are no rows.
  const hasRows = byId("rows") !== null;
  let rows = [], found = [], page = 0, open = -1;
  const filters = { model: byId("filter-model"), end: byId("filter-end"), reason: byId("filter-reason"), database: byId("filter-database") };

  function fillFilters() {
    for (const [name, select] of Object.entries(filters)) {
      const chosen = select.value;
      const values = [...new Set(rows.map((row) => row[name]).filter((value) => value !== null && value !== ""))].sort();
      const shown = name === "end" ? (value) => t(value) : plain;
      select.replaceChildren(new Option(t("all"), ""), ...values.map((value) => new Option(shown(value), value)));
      select.value = chosen;
    }
  }

  function filterRows() {
    const phrase = byId("search").value.trim().toLowerCase();
    found = rows.filter((row) =>
      Object.entries(filters).every(([name, select]) => !select.value || row[name] === select.value) &&
      row.search.includes(phrase));
    page = 0;
    showRows();
  }

  const cut = (text, limit) => (text.length > limit ? text.slice(0, limit).replace(/[\ud800-\udbff]$/, "") + "…" : text);
  const tag = (end) => element("span", { className: "tag " + end, textContent: t(end) });

  function cell(node, className = "") {
    const made = element("td", { className });
    made.append(node);
    return made;
  }

  function line(row, index) {
    const label = element("button", { type: "button", className: "open cut isolate", textContent: plain(cut(row.title, 120)) });
    label.addEventListener("click", () => showDetail(index));
    const text = (value) => element("span", { className: "cut isolate", textContent: plain(cut(value || "", 140)) });
    return element("tr", {}, cell(label), cell(text(row.model), "of-model"), cell(tag(row.end)), cell(text(row.reason)), cell(text(row.sql)));
  }

  function showRows() {
    const from = page * PAGE;
    const part = found.slice(from, from + PAGE);
    byId("row-table").tBodies[0].replaceChildren(...part.map((row, i) => line(row, from + i)));
    byId("previous").disabled = page === 0;
    byId("next").disabled = from + PAGE >= found.length;
    byId("page-note").textContent = found.length
      ? `${count(from + 1)}–${count(from + part.length)} / ${count(found.length)}` : t("No row fits.");
  }

  if (hasRows) {
    byId("previous").addEventListener("click", () => { page -= 1; showRows(); });
    byId("next").addEventListener("click", () => { page += 1; showRows(); });
    for (const select of Object.values(filters)) select.addEventListener("change", filterRows);
    byId("search").addEventListener("input", filterRows);
  }

  // ---- one row -----------------------------------------------------------------------------------------------------
  // A text is {text, left_out}: how many characters were left out when the page was made.
  function textBlock(part) {
    const block = element("pre", { tabIndex: 0 }, ...textNodes(part.text));
    if (part.left_out) block.append(element("em", { className: "soft", textContent: `\n… ${count(part.left_out)} ${t("more characters are in the file")}` }));
    return block;
  }

  function answerBlock(parts) {
    const block = element("pre", { tabIndex: 0 });
    for (const part of parts) {
      const nodes = textNodes(part.text);
      block.append(...(part.sql ? [element("mark", {}, ...nodes)] : nodes));
      if (part.left_out) block.append(element("em", { className: "soft", textContent: ` … ${count(part.left_out)} ${t("more characters are in the file")} … ` }));
    }
    return block;
  }

  function facts(pairs) {
    const list = element("dl");
    for (const [name, value] of pairs) {
      if (value === null || value === undefined || value === "") continue;
      list.append(element("dt", { textContent: t(name) }), element("dd", { className: "isolate" }, ...textNodes(asText(value))));
    }
    return list;
  }

  function resultTable(result) {
    const body = element("tbody");
    for (const cells of result.rows) {
      body.append(element("tr", {}, ...cells.map((value) => element("td", { className: "isolate" }, ...textNodes(value)))));
    }
    const more = result.more_rows ? [element("p", { className: "soft small", textContent: `+ ${count(result.more_rows)} ${t("more rows")}` })] : [];
    const empty = result.rows.length ? [] : [element("p", { className: "nochart", textContent: t("No row.") })];
    return element("div", { className: "scroll" }, element("table", { className: "result" }, body), ...more, ...empty);
  }

  function detailNodes(row) {
    const heading = (text) => element("h3", { textContent: t(text) });
    const d = row.detail;
    const nodes = [facts([["Model", row.model], ["End", t(row.end)], ["Reason", row.reasons.join(", ")], ["File", row.place], ["sample_id", row.sample_id], ["sample_index", d.sample_index]])];
    if (d.error) nodes.push(heading("Error"), textBlock(d.error));
    for (const message of d.messages) nodes.push(heading("Prompt"), element("div", { className: "soft small", textContent: message.role }), textBlock(message));
    if (d.answer.length) {
      nodes.push(heading("Answer"));
      nodes.push(element("p", { className: "soft small", textContent: t(d.answer.some((part) => part.sql) ? "What was extracted is marked." : "Nothing was extracted, or not as it stands here.") }));
      nodes.push(answerBlock(d.answer));
    }
    if (d.reasoning) nodes.push(element("details", {}, element("summary", { textContent: t("Reasoning") }), textBlock(d.reasoning)));
    if (d.sql) nodes.push(heading("Extracted"), textBlock(d.sql));
    if (d.gold) nodes.push(heading("Gold"), textBlock(d.gold));
    if (d.result.length) nodes.push(heading("Result against gold"), facts(d.result));
    for (const [kind, name] of [["result", "Result of the answer, first rows"], ["gold", "Result of gold, first rows"]]) {
      if (d.tables[kind]) nodes.push(heading(name), resultTable(d.tables[kind]));
    }
    if (d.facts.length) nodes.push(heading("How it was answered"), facts(d.facts));
    if (d.fields.length) nodes.push(heading("Fields of the input"), facts(d.fields));
    return nodes;
  }

  const dialog = byId("detail");
  function showDetail(index) {
    const row = found[index];
    if (!row) return;
    open = index;
    byId("detail-title").textContent = plain(cut(row.title, 90));
    byId("detail-body").replaceChildren(...detailNodes(row));
    byId("detail-previous").disabled = index === 0;
    byId("detail-next").disabled = index === found.length - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  byId("detail-close").addEventListener("click", () => dialog.close());
  byId("detail-previous").addEventListener("click", () => showDetail(open - 1));
  byId("detail-next").addEventListener("click", () => showDetail(open + 1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.closest("pre")) return;
    if (event.key === "ArrowLeft") showDetail(open - 1);
    if (event.key === "ArrowRight") showDetail(open + 1);
  });

  // An example may be a row that the filters hide: then they are taken off.
  function openAnywhere(row) {
    for (const select of Object.values(filters)) select.value = "";
    byId("search").value = "";
    filterRows();
    showDetail(found.indexOf(row));
  }

  function showExamples() {
    for (const node of document.querySelectorAll("[data-example]")) {
      const row = rows.find((item) => item.model === node.dataset.model && item.classes[node.dataset.example] === node.dataset.name);
      if (!row) continue;
      const shown = plain(cut(row.example || row.title, 160));
      const button = element("button", { type: "button", className: "open example isolate", textContent: shown });
      button.addEventListener("click", () => openAnywhere(row));
      node.replaceChildren(button);
    }
  }

  const strings = (value) => typeof value === "string" ? [value] : value && typeof value === "object" ? Object.values(value).flatMap(strings) : [];

  async function loadRows() {
    if (!hasRows) return;
    rows = JSON.parse(await unpack(byId("rows-data")));
    for (const row of rows) row.search = strings(row).join("\n").toLowerCase();
    found = rows;
    showExamples();
    fillFilters();
    showRows();
    document.documentElement.dataset.rows = String(rows.length);
  }

  translate();
  loadRows().then(drawCharts, (error) => { document.documentElement.dataset.rows = "failed: " + error.message; });
})();
