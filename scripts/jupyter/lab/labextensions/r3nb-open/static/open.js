// What `make lab` adds to JupyterLab: once the explorer is open and its kernel is up, its cells are run, as by Run All Cells. Nothing else is touched.
const plugin = {
  id: "r3nb-open:plugin",
  autoStart: true,
  activate: app => {
    const seen = new WeakSet();
    const visit = async panel => {
      if (!panel?.context || seen.has(panel) || !/(^|\/)explore\.ipynb$/.test(panel.context.path)) return;
      seen.add(panel);
      await Promise.all([panel.context.ready, panel.sessionContext.ready]);
      await panel.sessionContext.session?.kernel?.info;
      app.shell.activateById(panel.id);
      await app.commands.execute("notebook:run-all-cells");
    };
    app.restored.then(() => {
      visit(app.shell.currentWidget);
      app.shell.currentChanged.connect((_, change) => visit(change.newValue));
    });
  },
};
window._JUPYTERLAB = window._JUPYTERLAB || {};
window._JUPYTERLAB["r3nb-open"] = {init: () => {}, get: () => Promise.resolve(() => ({__esModule: true, default: plugin}))};
