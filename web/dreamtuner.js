// What the schema cannot say to the page: colours of the sockets, folded inputs, a rate of 0 in words, notes, hints.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const COLOURS = {
  DREAMTUNER_SUBJECT: "#e9a23b",
  DREAMTUNER_SUBJECT_ENCODER: "#9b7fd6",
  DREAMTUNER_TUNED_SUBJECT: "#d9627d",
};
const OWN_RATE = { en: "method's own", ja: "方式の既定値", zh: "方法默认值", fr: "celui de la méthode", ko: "방식의 기본값" };

let locale = "en";
let notes = {};
let hints = {};

function paint() {
  for (const [type, colour] of Object.entries(COLOURS)) {
    LGraphCanvas.link_type_colors[type] = colour;
    app.canvas.default_connection_color_byType[type] = colour;
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour); // Nodes 2.0
  }
}

async function translated(folder) {
  const found = await fetch(new URL(`${folder}/${locale}.json`, import.meta.url)).catch(() => null);
  return found?.ok ? await found.json() : {};
}

// A node's hints about a picture, as text on the node; not part of the graph.
function showHints(node, output) {
  const words = output?.dreamtuner_notes?.map((key, i) => hints[key] ?? output.text[i]).join("\n") ?? "";
  let shown = node.widgets?.find((widget) => widget.name === "hints");
  if (!shown && !words) return;
  if (!shown) {
    shown = ComfyWidgets.STRING(node, "hints", ["STRING", { multiline: true, socketless: true }], app).widget;
    shown.serialize = false; // neither saved in the workflow
    shown.options.serialize = false; // nor sent to the server
    if (shown.inputEl) shown.inputEl.readOnly = true;
    const room = node.computeSize();
    node.setSize(node.size.map((side, i) => Math.max(side, room[i])));
  }
  shown.value = words;
}

// The page leaves a text on its node: a warning of the run before goes when the node runs again.
function clearWarning(id) {
  const node = app.graph?.getNodeById(id);
  const text = (widget) => widget.name === "$$node-text-preview" && `${widget.value}`.startsWith("DreamTuner: ");
  const shown = node?.widgets?.find(text);
  if (!shown) return;
  shown.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(shown), 1);
}

// The classic canvas reads `advanced` here (Show Advanced), and leaves space for a hidden widget: 4 pixels and its size.
function fold(node, widget) {
  widget.advanced = true;
  widget.computeSize = (width) => [width, node.showAdvanced ? LiteGraph.NODE_WIDGET_HEIGHT : -4];
}

app.registerExtension({
  name: "DreamTuner",

  async setup() {
    locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    api.addEventListener("executing", ({ detail }) => clearWarning(detail?.node ?? detail));
    [notes, hints] = await Promise.all(["notes", "hints"].map(translated));
  },

  afterConfigureGraph: paint, // a colour palette, applied late, removes the colours of types that it does not know

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("DreamTuner")) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.dreamtuner_notes) showHints(this, output);
    };
    const folded = node.widgets?.filter((widget) => widget.options?.advanced) ?? [];
    for (const widget of folded) fold(node, widget);
    if (folded.length) node.setSize(node.computeSize());
    if (node.comfyClass !== "DreamTunerSubjectTuning") return;
    const rate = node.widgets?.find((widget) => widget.name === "learning_rate");
    if (!rate) return;
    Object.defineProperty(rate, "_displayValue", {
      get: () => (rate.value ? String(rate.value) : (OWN_RATE[locale] ?? OWN_RATE.en)),
    });
  },

  // The note of a shipped workflow, in the page's language; only once, so that an artist's own text stays.
  loadedGraphNode(node) {
    const name = node.properties?.dreamtuner_note;
    if (!name) return;
    delete node.properties.dreamtuner_note;
    if (notes[name]) node.widgets[0].value = notes[name];
  },
});
